//! The beacon's thread: it moves bytes between the sockets and the state.
//!
//! It waits for its sockets itself. A runtime is woken by every datagram that comes and by every one that has left, since
//! its sockets are registered for writing as well; here a poll says what is waited for, and nothing wakes a thread that
//! is at work. What asynchronous tasks have for it they leave in a queue, and ring its bell.

use super::link::Link;
use super::pace::Pace;
use super::socket::mapped;
use super::{Beacon, Counters, Directory};
use crate::compat::Arrival;
use crate::server::stopped;
use pilot_proto::NodeId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};

/// Datagrams taken from the second port before other work gets a turn.
const PROBES: usize = 32;
/// Hints and messages of WebSockets handled before other work gets a turn, ...
const INPUTS: usize = 64;
/// ... and under way to the thread, up to 64 KiB each, beside those that wait in their own queues.
const UNDER_WAY: usize = 16;
const SYNC_INTERVAL: Duration = Duration::from_secs(10);
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// What the registry tells the beacon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Something waits in the node's inbox.
    Handshake(NodeId),
    /// The node has registered, from this IP address.
    Registered(NodeId, Option<IpAddr>),
}

/// What reaches the beacon beside its sockets.
pub(crate) struct Inputs {
    pub hints: mpsc::Receiver<Hint>,
    pub arrivals: mpsc::Receiver<Arrival>,
}

/// The counters, readable from outside the task.
#[derive(Debug, Default)]
pub(crate) struct SharedCounters(Mutex<Counters>);

impl SharedCounters {
    fn publish(&self, counters: Counters) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    pub fn read(&self) -> Counters {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Input {
    Hint(Hint),
    Arrival(Arrival),
}

/// Wakes the thread. Dropped, it wakes it as well.
struct Bell {
    wire: UnixStream,
    /// It has rung and has not been heard yet.
    rung: Arc<AtomicBool>,
}

impl Bell {
    fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Full is as good: there is something to read at the other end.
            let _ = (&self.wire).write(&[1]);
        }
    }
}

/// The thread's end of it.
struct Ear {
    wire: UnixStream,
    rung: Arc<AtomicBool>,
    inputs: mpsc::Receiver<Input>,
}

impl Ear {
    /// To be called before the queue is looked at: what is queued from here on rings again.
    fn hear(&self) {
        let mut bytes = [0; 16];
        let _ = (&self.wire).read(&mut bytes);
        self.rung.store(false, Ordering::Release);
    }
}

fn bell() -> std::io::Result<(Bell, mpsc::Sender<Input>, Ear)> {
    let (ring, hear) = UnixStream::pair()?;
    ring.set_nonblocking(true)?;
    hear.set_nonblocking(true)?;
    let rung = Arc::new(AtomicBool::new(false));
    let (tx, inputs) = mpsc::channel(UNDER_WAY);
    Ok((Bell { wire: ring, rung: rung.clone() }, tx, Ear { wire: hear, rung, inputs }))
}

/// Hands the thread what reaches the beacon beside its sockets, until stopped.
async fn hand_over(
    Inputs { mut hints, mut arrivals }: Inputs,
    (bell, thread): (Bell, mpsc::Sender<Input>),
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let input = tokio::select! {
            Some(hint) = hints.recv() => Input::Hint(hint),
            Some(arrival) = arrivals.recv() => Input::Arrival(arrival),
            _ = stopped(&mut stop) => return,
        };
        tokio::select! {
            sent = thread.send(input) => if sent.is_err() { return },
            _ = stopped(&mut stop) => return,
        }
        bell.ring();
    }
}

/// Starts the thread, which serves until stopped or until the current runtime ends. `ended` is dropped when it has.
#[expect(clippy::too_many_arguments)]
pub(crate) fn start(
    socket: UdpSocket,
    probe: Option<UdpSocket>,
    beacon: Beacon,
    directory: impl Directory + Send + 'static,
    counters: Arc<SharedCounters>,
    inputs: Inputs,
    stop: watch::Receiver<bool>,
    ended: mpsc::Sender<()>,
) -> std::io::Result<()> {
    let link = Link::new(socket)?;
    let (bell, thread, ear) = bell()?;
    let serve = move || {
        if let Err(e) = run(link, probe, beacon, directory, &counters, ear) {
            tracing::error!(error = %e, "the beacon's socket failed");
        }
        drop(ended);
    };
    std::thread::Builder::new().name("pilot-beacon".into()).spawn(serve)?;
    tokio::spawn(hand_over(inputs, (bell, thread), stop));
    Ok(())
}

fn run(
    mut link: Link,
    probe: Option<UdpSocket>,
    mut beacon: Beacon,
    directory: impl Directory,
    counters: &SharedCounters,
    mut ear: Ear,
) -> std::io::Result<()> {
    let mut pace = Pace::new(link.receive_buffer());
    let (mut sync, mut sweep) = (Instant::now(), Instant::now() + SWEEP_INTERVAL);
    // More inputs wait than one turn handles.
    let mut more = false;
    loop {
        let timeout = match more {
            true => Duration::ZERO,
            false => sync.min(sweep).saturating_duration_since(Instant::now()),
        };
        let timeout = Timespec { tv_sec: timeout.as_secs() as _, tv_nsec: timeout.subsec_nanos().into() };
        let wanted = if beacon.waiting() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = [
            PollFd::new(link.socket(), wanted),
            PollFd::new(&ear.wire, PollFlags::IN),
            PollFd::new(probe.as_ref().unwrap_or(link.socket()), PollFlags::IN),
        ];
        let used = if probe.is_some() { 3 } else { 2 };
        match poll(&mut fds[..used], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let [readable, rung, probed] = fds.map(|fd| fd.revents());
        let mut wait = Duration::ZERO;
        if readable.intersects(!PollFlags::OUT) {
            let before = link.messages();
            let turn = link.receive(&mut beacon, &directory);
            link.flush(&mut beacon);
            if turn.emptied {
                let messages = link.messages() - before;
                wait = pace.wait(turn.datagrams, turn.bytes, messages, Instant::now());
            }
        }
        if !probed.is_empty()
            && let Some(probe) = &probe
        {
            answer(probe, &mut beacon, &directory, link.v6);
        }
        if more || !rung.is_empty() {
            ear.hear();
            more = true;
            for _ in 0..INPUTS {
                match ear.inputs.try_recv() {
                    Ok(Input::Hint(Hint::Handshake(node))) => {
                        beacon.notify(node, Instant::now(), &mut link.answers());
                    }
                    Ok(Input::Hint(Hint::Registered(node, ip))) => {
                        beacon.registered(node, ip, Instant::now());
                    }
                    Ok(Input::Arrival(arrival)) => beacon.arrived(arrival),
                    Err(TryRecvError::Empty) => {
                        more = false;
                        break;
                    }
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
        }
        let now = Instant::now();
        if now >= sync {
            beacon.announce(&mut link.answers());
            sync = now + SYNC_INTERVAL;
        }
        if now >= sweep {
            beacon.sweep(now);
            sweep = now + SWEEP_INTERVAL;
        }
        link.flush(&mut beacon);
        beacon.counters.answers_unsent = link.unsent;
        counters.publish(beacon.counters);
        if !wait.is_zero() && !more && !beacon.waiting() {
            std::thread::sleep(wait);
        }
    }
}

/// Answers what has come to the second port.
fn answer(socket: &UdpSocket, beacon: &mut Beacon, directory: &impl Directory, v6: bool) {
    for _ in 0..PROBES {
        // Longer ones are cut: what follows the layout is ignored.
        let mut buffer = [0; 64];
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { return };
        let mut send = |to: SocketAddr, bytes: &[u8]| {
            let _ = socket.send_to(bytes, mapped(to, v6));
        };
        beacon.probe(from, &buffer[..len], directory, Instant::now(), &mut send);
    }
}
