//! The thread that carries packets between the TUN interfaces of the hosts and the [`World`].

use crate::link::MTU_MAX;
use crate::world::{Deliver, PortId, World};
use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Packets read from one interface before the others and the clock have their turn.
const BATCH: usize = 64;
/// Niceness of the thread: links must keep their timing on a busy machine.
const NICE: i32 = -10;
/// Marks the wake-up descriptor among the interfaces.
const WAKE: u64 = u64::MAX;

/// What the thread owns.
pub(crate) struct State {
    pub world: World,
    taps: Taps,
    epoll: Arc<OwnedFd>,
    /// Where packets are read into.
    scratch: Box<[u8]>,
}

/// The interfaces by port.
#[derive(Default)]
struct Taps(Vec<Option<OwnedFd>>);

impl Deliver for Taps {
    fn deliver(&mut self, port: PortId, packet: &[u8]) {
        if let Some(Some(tun)) = self.0.get(port.0) {
            // A host that is being taken down, or whose interface is, loses the packet.
            let _ = rustix::io::write(tun, packet);
        }
    }
}

impl State {
    /// Connects an interface to its port.
    pub fn connect(&mut self, port: PortId, tun: OwnedFd) -> io::Result<()> {
        epoll::add(&self.epoll, &tun, epoll::EventData::new_u64(port.0 as u64), epoll::EventFlags::IN)?;
        if self.taps.0.len() <= port.0 {
            self.taps.0.resize_with(port.0 + 1, || None);
        }
        self.taps.0[port.0] = Some(tun);
        Ok(())
    }

    fn read(&mut self, port: PortId) {
        for _ in 0..BATCH {
            let Some(Some(tun)) = self.taps.0.get(port.0) else { return };
            let n = match rustix::io::read(tun, &mut *self.scratch) {
                Ok(n) => n,
                Err(Errno::AGAIN | Errno::INTR) => return,
                // The interface has been deleted on the host.
                Err(_) => {
                    self.taps.0[port.0] = None;
                    return;
                }
            };
            let mut packet = self.world.buffer();
            packet.extend_from_slice(&self.scratch[..n]);
            self.world.send(Instant::now(), port, packet, &mut self.taps);
        }
    }
}

type Job = Box<dyn FnOnce(&mut State) + Send>;

/// A handle to the thread, which ends with it.
pub(crate) struct Fabric {
    jobs: Option<Sender<Job>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Fabric {
    pub fn start(seed: u64) -> io::Result<Fabric> {
        let wake = Arc::new(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC)?);
        epoll::add(&epoll, &wake, epoll::EventData::new_u64(WAKE), epoll::EventFlags::IN)?;
        let (jobs, inbox) = channel();
        let (ready, started) = channel();
        let thread = std::thread::Builder::new().name("netlab".into()).spawn({
            let wake = Arc::clone(&wake);
            move || {
                let privileged = prepare_thread();
                let ok = privileged.is_ok();
                let _ = ready.send(privileged);
                if ok {
                    let scratch = vec![0; MTU_MAX].into_boxed_slice();
                    let world = World::new(seed);
                    run(State { world, taps: Taps::default(), epoll, scratch }, &inbox, &wake);
                }
            }
        })?;
        started.recv().map_err(io::Error::other)??;
        Ok(Fabric { jobs: Some(jobs), wake, thread: Some(thread) })
    }

    /// Does something on the thread and waits for the result.
    pub fn with<T: Send + 'static>(&self, f: impl FnOnce(&mut State) -> T + Send + 'static) -> T {
        let (reply, result) = channel();
        let job: Job = Box::new(move |state| {
            let _ = reply.send(f(state));
        });
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .expect("the thread ends with this handle only");
        self.wake();
        result.recv().expect("the thread answers every job")
    }

    fn wake(&self) {
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }
}

impl Drop for Fabric {
    fn drop(&mut self) {
        self.jobs = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn prepare_thread() -> io::Result<()> {
    rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE)?;
    rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1))?;
    Ok(())
}

fn run(mut state: State, inbox: &Receiver<Job>, wake: &OwnedFd) {
    let epoll = Arc::clone(&state.epoll);
    let mut events = Vec::with_capacity(64);
    loop {
        let now = Instant::now();
        state.world.advance(now, &mut state.taps);
        let wait = state.world.deadline().map(|at| timespec(at.saturating_duration_since(Instant::now())));
        events.clear();
        match epoll::wait(&epoll, rustix::buffer::spare_capacity(&mut events), wait.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => panic!("epoll: {e}"),
        }
        for event in &events {
            let data = event.data.u64();
            if data != WAKE {
                state.read(PortId(data as usize));
                continue;
            }
            let _ = rustix::io::read(wake, &mut [0u8; 8]);
            loop {
                match inbox.try_recv() {
                    Ok(job) => job(&mut state),
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
        }
    }
}

fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: d.as_secs().min(3600) as i64, tv_nsec: d.subsec_nanos().into() }
}
