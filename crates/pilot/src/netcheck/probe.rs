//! Questions to beacons from a socket of our own, none of which registers anybody.

use crate::socket::{Plain, canonical};
use pilot_proto::path::nat;
use pilot_proto::wire::beacon::Message;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::broadcast;
use tokio::time::timeout;

/// Waits after the copies of a question.
const WAITS: [Duration; 3] =
    [Duration::from_millis(350), Duration::from_millis(650), Duration::from_millis(1200)];
/// Replies kept for a task that has not looked yet.
const REPLIES: usize = 64;
/// Bytes of a question: longer than any reply, so that it never amplifies.
const ASK_LEN: usize = 32;
/// Sizes of IP packets that are tried: those of usual links, tunnels and the least of IPv6.
const PACKETS: [usize; 8] = [1500, 1492, 1480, 1460, 1420, 1380, 1328, 1280];
/// Copies of each.
const COPIES: u32 = 3;
const COPY_EVERY: Duration = Duration::from_millis(120);

/// A beacon's answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Answer {
    pub(super) rtt: Duration,
    /// Where it sees us.
    pub(super) observed: SocketAddr,
    pub(super) asked: Instant,
}

/// A socket and what comes in.
pub(super) struct Prober {
    socket: Arc<Plain>,
    replies: broadcast::Sender<(SocketAddr, SocketAddr, Instant)>,
    reader: tokio::task::JoinHandle<()>,
    /// What the answers say of the NAT.
    nat: Mutex<nat::Nat>,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A question of this length; node ids begin at 1, so nobody is registered.
fn question(len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    Message::Discover { node: 0, key: None }.emit(&mut bytes);
    bytes.resize(len, 0);
    bytes
}

impl Prober {
    pub(super) fn new(own: &[std::net::IpAddr]) -> std::io::Result<Prober> {
        let socket = Arc::new(Plain::bind()?);
        let (replies, _) = broadcast::channel(REPLIES);
        let reader = tokio::spawn(read(socket.clone(), replies.clone()));
        let mut nat = nat::Nat::default();
        let port = socket.port();
        nat.set_local_port(port);
        nat.set_own(&own.iter().map(|ip| SocketAddr::new(*ip, port)).collect::<Vec<_>>());
        Ok(Prober { socket, replies, reader, nat: Mutex::new(nat) })
    }

    pub(super) fn port(&self) -> u16 {
        self.socket.port()
    }

    pub(super) fn nat(&self) -> nat::NatClass {
        crate::lock(&self.nat).class()
    }

    pub(super) fn keeps_port(&self) -> Option<bool> {
        crate::lock(&self.nat).keeps_port()
    }

    /// Asks all of them at once, in this order.
    pub(super) async fn ask(&self, all: &[SocketAddr]) -> Vec<Option<Answer>> {
        let mut running = Vec::new();
        for to in all {
            let replies = self.replies.subscribe();
            let asked = Instant::now();
            crate::lock(&self.nat).asking(asked, *to);
            // What cannot be sent is not answered.
            let _ = self.socket.send(*to, &question(ASK_LEN)).await;
            running.push(tokio::spawn(answer(self.socket.clone(), *to, asked, replies)));
        }
        let mut answers = Vec::with_capacity(running.len());
        for (task, to) in running.into_iter().zip(all) {
            let answer = task.await.ok().flatten();
            if let Some(answer) = answer {
                crate::lock(&self.nat).observe(answer.asked, *to, answer.observed, None);
            }
            answers.push(answer);
        }
        answers
    }
}

async fn read(socket: Arc<Plain>, replies: broadcast::Sender<(SocketAddr, SocketAddr, Instant)>) {
    let mut buffer = [0; 2048];
    loop {
        match socket.receive(&mut buffer).await {
            Ok((len, from)) => {
                if let Ok(Message::DiscoverReply(observed)) = Message::parse(&buffer[..len]) {
                    // Without a waiting task there is nobody to tell.
                    let _ = replies.send((from, canonical(observed), Instant::now()));
                }
            }
            // Some systems report what routers said about earlier datagrams.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Waits for an answer to a question that was sent, and repeats it.
async fn answer(
    socket: Arc<Plain>,
    to: SocketAddr,
    asked: Instant,
    mut replies: broadcast::Receiver<(SocketAddr, SocketAddr, Instant)>,
) -> Option<Answer> {
    let mut sent = asked;
    for (n, wait) in WAITS.into_iter().enumerate() {
        if n > 0 {
            sent = Instant::now();
            let _ = socket.send(to, &question(ASK_LEN)).await;
        }
        let reply = async {
            loop {
                match replies.recv().await {
                    Ok((from, observed, at)) if from == to => return Some((observed, at)),
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        };
        match timeout(wait, reply).await {
            Ok(Some((observed, at))) => {
                // Which copy was answered is not known: the last is the shortest way, the first a bound.
                let rtt = at.saturating_duration_since(if n == 0 { asked } else { sent });
                return Some(Answer { rtt, observed, asked });
            }
            Ok(None) => return None,
            Err(_) => {}
        }
    }
    None
}

/// The largest IP packet that gets through to a beacon. Each size has a socket of its own, since replies look alike.
pub(super) async fn largest(to: SocketAddr, rtt: Duration) -> Option<(usize, usize)> {
    let headers = if to.is_ipv4() { 28 } else { 48 };
    let mut running = Vec::new();
    for packet in PACKETS {
        running.push(tokio::spawn(async move { fits(to, packet - headers, rtt).await.then_some(packet) }));
    }
    let mut largest = None;
    for task in running {
        largest = largest.max(task.await.ok().flatten());
    }
    largest.map(|packet| (packet, packet - headers))
}

async fn fits(to: SocketAddr, payload: usize, rtt: Duration) -> bool {
    let Ok(socket) = Plain::bind() else { return false };
    let mut buffer = [0; 256];
    for copy in 0..COPIES {
        // Larger than the interface carries: nothing was sent.
        if socket.send(to, &question(payload)).await.is_err() {
            return false;
        }
        let wait = if copy + 1 == COPIES { rtt * 2 + COPY_EVERY * 3 } else { COPY_EVERY + rtt };
        let reply = async {
            loop {
                if let Ok((len, from)) = socket.receive(&mut buffer).await
                    && from == to
                    && matches!(Message::parse(&buffer[..len]), Ok(Message::DiscoverReply(_)))
                {
                    return;
                }
            }
        };
        if timeout(wait, reply).await.is_ok() {
            return true;
        }
    }
    false
}
