//! Namespaces: one of processes and mounts per laboratory, one of networks per host, none with a name in the
//! file system, so that nothing is left when the process that made them ends in whatever way.

use crate::sys;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// What the first process of the laboratory runs. It reads a pipe whose other end only this process has: when
/// that ends, however it ends, so does the pipe, so does the first process, and the kernel kills every other
/// process of the namespace. Children it inherits are reaped because it ignores SIGCHLD. Files of services go
/// to a /run of their own, in memory.
const INIT: &str = "mount -t proc proc /proc && mount -t tmpfs tmpfs /run && trap '' CHLD && echo ready && exec cat >/dev/null";

/// The process namespace of a laboratory.
pub(crate) struct Processes {
    /// The first process and the pipe it reads, until the end.
    init: Mutex<Option<(Child, ChildStdin)>>,
    pid: OwnedFd,
    mount: OwnedFd,
}

impl Processes {
    pub fn start() -> io::Result<Processes> {
        let mut init = on_new_thread("netlab-init", || {
            sys::unshare(UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWNET).map_err(|e| {
                io::Error::other(format!("no new namespaces ({e}): root (CAP_SYS_ADMIN) is needed"))
            })?;
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            let mut command = Command::new("sh");
            command.args(["-c", INIT]).stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn()
        })?;
        let lifeline = init.stdin.take().ok_or_else(|| io::Error::other("no pipe"))?;
        let mut said = String::new();
        if let Some(out) = init.stdout.take() {
            BufReader::new(out).read_line(&mut said)?;
        }
        if said != "ready\n" {
            return Err(io::Error::other(
                "the first process of the laboratory did not start (sh, cat, mount)",
            ));
        }
        let open = |kind: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(format!("/proc/{}/ns/{kind}", init.id()), flags, Mode::empty())
        };
        Ok(Processes { pid: open("pid")?, mount: open("mnt")?, init: Mutex::new(Some((init, lifeline))) })
    }

    /// The namespaces of processes and of mounts.
    pub fn namespaces(&self) -> (&OwnedFd, &OwnedFd) {
        (&self.pid, &self.mount)
    }

    /// Kills every process of the laboratory.
    pub fn end(&self) {
        let init = self.init.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((mut init, _)) = init {
            let _ = init.kill();
            // It is gone only after every child has been waited for by its parent, which may be a test that
            // still holds the handle: so nobody waits for this here.
            let _ = std::thread::Builder::new().name("netlab-reap".into()).spawn(move || init.wait());
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The network namespace of a host, and a thread in it from which the host's processes are born.
pub(crate) struct Space {
    network: OwnedFd,
    jobs: Sender<Job>,
}

impl Space {
    pub fn new(host: &str, processes: &Arc<Processes>) -> io::Result<Space> {
        let (jobs, inbox) = channel::<Job>();
        let (ready, opened) = channel();
        let processes = Arc::clone(processes);
        std::thread::Builder::new().name(format!("netlab-{host}")).spawn(move || {
            let enter = || {
                sys::unshare(UnshareFlags::NEWNET | UnshareFlags::FS)?;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let network = rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?;
                move_into_link_name_space(processes.pid.as_fd(), Some(LinkNameSpaceType::ProcessID))?;
                move_into_link_name_space(processes.mount.as_fd(), Some(LinkNameSpaceType::Mount))?;
                Ok::<_, io::Error>(network)
            };
            let _ = ready.send(enter());
            drop(ready);
            for job in inbox {
                job();
            }
        })?;
        let network = opened.recv().map_err(io::Error::other)??;
        Ok(Space { network, jobs })
    }

    pub fn network(&self) -> &OwnedFd {
        &self.network
    }

    /// Runs something on the host's own thread: in its network, process and mount namespaces.
    pub fn on_thread<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let (reply, result) = channel();
        let job: Job = Box::new(move || {
            let _ = reply.send(f());
        });
        self.jobs.send(job).map_err(|_| gone())?;
        result.recv().map_err(|_| gone())
    }

    /// Runs something in the host's network on a thread of its own, and waits for it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok::<_, io::Error>(f())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn gone() -> io::Error {
    io::Error::other("the host's thread has ended")
}

/// Runs something on a new thread and waits for it; its namespaces end with it, or live on in its children.
fn on_new_thread<T: Send>(name: &str, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.into()).spawn_scoped(scope, f)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
