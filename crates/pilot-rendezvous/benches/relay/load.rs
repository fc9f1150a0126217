//! Senders, receivers and floods.

use crate::FRAME;
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Frames of one system call of a sender with one flow: an IP packet holds no more.
const RUN: usize = 52;
/// Receivers have node ids from here on, senders from 1.
const RECEIVERS: u32 = 10_001;
/// The flooding node.
const FLOODER: u32 = 777;

pub fn discover(node: u32) -> Vec<u8> {
    [&[1][..], &node.to_be_bytes()].concat()
}

fn relay(from: u32, to: u32) -> Vec<u8> {
    let mut frame = [&[5][..], &from.to_be_bytes(), &to.to_be_bytes()].concat();
    frame.resize(FRAME, 0x5A);
    frame
}

/// A socket that has told the relay which node it is.
fn node(relay: SocketAddr, at: &str, id: u32) -> UdpSocket {
    let socket = UdpSocket::bind((at, 0)).unwrap();
    let _ = socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20);
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    for _ in 0..50 {
        socket.send_to(&discover(id), relay).unwrap();
        if socket.recv(&mut [0; 64]).is_ok() {
            return socket;
        }
    }
    panic!("the relay does not answer");
}

/// What arrived.
#[derive(Default, Clone, Copy)]
pub struct Got {
    pub frames: u64,
    pub bytes: u64,
}

/// Flows through a relay.
pub struct Load {
    relay: SocketAddr,
    senders: Vec<UdpSocket>,
    receivers: Vec<UdpSocket>,
}

impl Load {
    pub fn new(relay: SocketAddr, flows: u32, at: &str) -> Load {
        let nodes = |first: u32| (first..first + flows).map(|id| node(relay, at, id)).collect();
        Load { relay, senders: nodes(1), receivers: nodes(RECEIVERS) }
    }

    /// As many frames as possible, or `mbit` Mbit/s; says what arrived within `secs`.
    pub fn run(self, secs: Duration, mbit: Option<u64>) -> Got {
        let stop = Arc::new(AtomicBool::new(false));
        let receiving = {
            let (stop, receivers) = (stop.clone(), self.receivers);
            std::thread::spawn(move || receive(receivers, &stop))
        };
        send(self.relay, &self.senders, secs, mbit);
        stop.store(true, Ordering::Relaxed);
        receiving.join().unwrap()
    }
}

fn send(to: SocketAddr, senders: &[UdpSocket], secs: Duration, mbit: Option<u64>) {
    let frames: Vec<Vec<u8>> = (0..senders.len() as u32).map(|n| relay(1 + n, RECEIVERS + n)).collect();
    let run = frames[0].repeat(if mbit.is_some() { 10 } else { RUN });
    let state = UdpSocketState::new(UdpSockRef::from(&senders[0])).unwrap();
    let began = Instant::now();
    let mut sent = 0u64;
    loop {
        let passed = began.elapsed();
        if passed >= secs {
            return;
        }
        if mbit.is_some_and(|mbit| sent * 8 > mbit * passed.as_micros() as u64) {
            std::thread::sleep(Duration::from_micros(500));
            continue;
        }
        if let [sender] = senders {
            let transmit = Transmit {
                destination: to,
                ecn: None,
                contents: &run,
                segment_size: Some(FRAME),
                src_ip: None,
            };
            match state.try_send(UdpSockRef::from(sender), &transmit) {
                Ok(()) => sent += run.len() as u64,
                Err(_) => std::thread::sleep(Duration::from_micros(50)),
            }
        } else {
            for (sender, frame) in senders.iter().zip(&frames) {
                let _ = sender.send_to(frame, to);
            }
        }
    }
}

/// Reads all sockets as our nodes do, coalesced.
fn receive(receivers: Vec<UdpSocket>, stop: &AtomicBool) -> Got {
    let states: Vec<UdpSocketState> =
        receivers.iter().map(|r| UdpSocketState::new(UdpSockRef::from(r)).unwrap()).collect();
    let mut buffers = vec![vec![0; 65_536]; BATCH_SIZE];
    let mut meta = vec![RecvMeta::default(); BATCH_SIZE];
    let mut got = Got::default();
    while !stop.load(Ordering::Relaxed) {
        let mut idle = true;
        for (receiver, state) in receivers.iter().zip(&states) {
            let mut slices: Vec<IoSliceMut<'_>> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
            let Ok(count) = state.recv(UdpSockRef::from(receiver), &mut slices, &mut meta) else { continue };
            idle = false;
            for meta in &meta[..count] {
                got.frames += meta.len.div_ceil(meta.stride.max(1)) as u64;
                got.bytes += meta.len as u64;
            }
        }
        if idle {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    got
}

/// What one source sends as fast as one thread can.
#[derive(Clone, Copy)]
pub enum Flood {
    /// Small relay frames in the name of a node that is elsewhere.
    Forged,
    /// Frames of the flooder's own node to a node that is known and does not read.
    Own,
    Discover,
}

impl Flood {
    /// Starts it; the thread returns datagrams per second.
    pub fn start(self, beacon: SocketAddr, to: SocketAddr, secs: Duration) -> JoinHandle<f64> {
        // A network of its own: ids the registry does not know share places by network.
        let socket = node(beacon, "127.0.3.3", FLOODER);
        let idle = node(beacon, "127.0.3.3", FLOODER + 1);
        std::thread::spawn(move || {
            let began = Instant::now();
            let mut sent = 0u64;
            let mut datagram = match self {
                Flood::Forged => relay(1, FLOODER + 1)[..20].to_vec(),
                Flood::Own => relay(FLOODER, FLOODER + 1),
                Flood::Discover => discover(0),
            };
            while began.elapsed() < secs {
                for _ in 0..64 {
                    if matches!(self, Flood::Discover) {
                        datagram[1..5].copy_from_slice(&(100_000 + sent as u32).to_be_bytes());
                    }
                    sent += u64::from(socket.send_to(&datagram, to).is_ok());
                }
            }
            drop(idle);
            sent as f64 / began.elapsed().as_secs_f64()
        })
    }
}
