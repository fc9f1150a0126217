//! A stream between two agents that never pauses: what arrives is what was sent, and how long nothing arrived.

use crate::probe::lookup;
use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use pilot_ipc::{Client, IpcReader, IpcWriter};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

/// Distance of writes.
const TICK: Duration = Duration::from_millis(10);
/// Shortest silence worth noting.
const NOTED: Duration = Duration::from_millis(20);
/// Period of the bytes sent; it shares no factor with segments and writes, so that what is delivered in a wrong place
/// changes the hash.
const PERIOD: usize = 1_048_573;
/// How long what is under way may take at the end.
const END: Duration = Duration::from_secs(30);

/// What arrived so far.
#[derive(Debug, Default)]
struct Arrivals {
    bytes: u64,
    last: Option<Instant>,
    /// Silences of at least [`NOTED`]: from when, how long.
    silences: Vec<(Instant, Duration)>,
}

/// A stream at work.
pub struct Flow {
    arrivals: Arc<Mutex<Arrivals>>,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Result<(u64, Vec<u8>), String>>,
    receiver: JoinHandle<(u64, Vec<u8>)>,
}

impl Flow {
    /// Opens a stream from one daemon's client to this port of the node with that name and sends at this rate, in Mbit/s.
    pub async fn start(from: &Client, to: &Client, name: &str, port: u16, mbit: u64) -> Result<Flow, String> {
        let mut listener = to.listen(port).await.map_err(|e| e.to_string())?;
        let addr = lookup(from, name).await?;
        let stream = from.dial(addr, port).await.map_err(|e| format!("dial: {e}"))?;
        let (keep, writer) = stream.split();
        let accepted = listener.accept().await.ok_or("the daemon went away")?;
        let (reader, other) = accepted.split();
        let arrivals = Arc::new(Mutex::new(Arrivals::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let sender = tokio::spawn(send(writer, keep, mbit, Arc::clone(&stop)));
        let receiver = tokio::spawn(receive(reader, other, Arc::clone(&arrivals)));
        Ok(Flow { arrivals, stop, sender, receiver })
    }

    /// Bytes that arrived so far.
    pub fn received(&self) -> u64 {
        self.lock().bytes
    }

    /// Waits until this many more bytes have arrived; fails after `limit`.
    pub async fn carries(&self, bytes: u64, limit: Duration) -> Result<(), String> {
        let (goal, start) = (self.received() + bytes, Instant::now());
        let mut tick = tokio::time::interval(TICK);
        while self.received() < goal {
            tick.tick().await;
            if start.elapsed() > limit {
                let still = self.received() + bytes - goal;
                return Err(format!("{still} of {bytes} bytes arrived within {limit:?}"));
            }
        }
        Ok(())
    }

    /// The longest silence that was not over at this time.
    pub fn longest_silence_since(&self, since: Instant) -> Duration {
        let arrivals = self.lock();
        let current = arrivals.last.map(|last| (last, last.elapsed()));
        let ended = arrivals.silences.iter().copied().chain(current);
        ended
            .filter(|(from, length)| *from + *length >= since)
            .map(|(_, length)| length)
            .max()
            .unwrap_or_default()
    }

    /// The longest silence from this time on, whatever was before.
    pub fn silence_from(&self, since: Instant) -> Duration {
        let arrivals = self.lock();
        let current = arrivals.last.map(|last| (last, last.elapsed()));
        let ended = arrivals.silences.iter().copied().chain(current);
        ended
            .map(|(from, length)| (from + length).saturating_duration_since(from.max(since)))
            .max()
            .unwrap_or_default()
    }

    /// Ends the stream in order: how many bytes it carried. An error if what arrived is not what was sent.
    pub async fn finish(self) -> Result<u64, String> {
        self.stop.store(true, Relaxed);
        let both = async { (self.sender.await, self.receiver.await) };
        let (sent, received) = tokio::time::timeout(END, both)
            .await
            .map_err(|_| format!("the stream did not end within {END:?}"))?;
        let (sent, received) = (sent.map_err(|e| e.to_string())??, received.map_err(|e| e.to_string())?);
        match sent == received {
            true => Ok(sent.0),
            false => Err(format!("sent {} bytes, received {}; or other ones", sent.0, received.0)),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Arrivals> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends until told to stop: count and hash of what was sent.
async fn send(
    mut writer: IpcWriter,
    _keep: IpcReader,
    mbit: u64,
    stop: Arc<AtomicBool>,
) -> Result<(u64, Vec<u8>), String> {
    let chunk = usize::try_from(mbit * 125_000 * TICK.as_millis() as u64 / 1000).expect("a small number");
    let block = block(chunk);
    let (mut hash, mut at, mut sent) = (Context::new(&SHA256), 0, 0);
    let mut tick = tokio::time::interval(TICK);
    // After a stall it sends what would have been due, as fast as the stream takes it.
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !stop.load(Relaxed) {
        tick.tick().await;
        let part = block.slice(at..at + chunk);
        hash.update(&part);
        at = (at + chunk) % PERIOD;
        sent += chunk as u64;
        writer.write(part).await.map_err(|e| format!("after {sent} bytes: {e}"))?;
    }
    if !writer.finish().await {
        return Err(format!("after {sent} bytes: the stream could not be finished"));
    }
    // Closed here, what is under way would still arrive; but the receiver is to see an end in order.
    Ok((sent, hash.finish().as_ref().to_vec()))
}

/// Receives to the end: count and hash of what came.
async fn receive(mut reader: IpcReader, _keep: IpcWriter, arrivals: Arc<Mutex<Arrivals>>) -> (u64, Vec<u8>) {
    let mut hash = Context::new(&SHA256);
    while let Some(data) = reader.read().await {
        let now = Instant::now();
        hash.update(&data);
        let mut arrivals = arrivals.lock().unwrap_or_else(PoisonError::into_inner);
        arrivals.bytes += data.len() as u64;
        if let Some(last) = arrivals.last.replace(now)
            && now - last >= NOTED
        {
            arrivals.silences.push((last, now - last));
        }
    }
    let bytes = arrivals.lock().unwrap_or_else(PoisonError::into_inner).bytes;
    (bytes, hash.finish().as_ref().to_vec())
}

/// The repeating bytes, long enough for a chunk from any place within a period.
fn block(chunk: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    let mut block: Vec<u8> = next.take(PERIOD).collect();
    block.extend_from_within(..chunk);
    block.into()
}
