//! Speed of the socket path alone: 64 MiB through the client to a peer that sends everything back, both at once.
//! `cargo bench -p pilot-ipc`

use bytes::Bytes;
use pilot_ipc::frame::{FrameReader, OutFrame};
use pilot_ipc::outbox::Outbox;
use pilot_ipc::{Client, Command, push};
use pilot_proto::Addr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::UnixStream;

const SIZE: usize = 64 << 20;
const ROUNDS: usize = 5;

/// The daemon's side: answers a dial, turns Send into Recv.
async fn echo(socket: UnixStream) {
    let (read, write) = socket.into_split();
    let outbox = Arc::new(Outbox::new(4 << 20, 256));
    let writing = outbox.clone();
    tokio::spawn(async move { writing.run(write, None).await });
    let mut frames = FrameReader::new(read);
    while let Ok(Some(frame)) = frames.next().await {
        let reply = match frame.command {
            c if c == Command::Dial as u8 => OutFrame::new(0x04, &1u32.to_be_bytes(), Bytes::new()),
            c if c == Command::Send as u8 => {
                OutFrame::new(push::RECV, &frame.body[..4], frame.body.slice(4..))
            }
            _ => continue,
        };
        if outbox.send(reply).await.is_err() {
            return;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (ours, theirs) = UnixStream::pair()?;
        tokio::spawn(echo(theirs));
        let client = Client::over(ours);
        for piece in [4 << 10, 64 << 10, 1 << 20, SIZE] {
            let mut best = f64::MAX;
            for _ in 0..ROUNDS {
                let (mut reader, mut writer) = client.dial(Addr::backbone(1), 7).await?.split();
                let data = Bytes::from(vec![0x5A; piece]);
                let start = Instant::now();
                tokio::spawn(async move {
                    for _ in 0..SIZE / piece {
                        if writer.write(data.clone()).await.is_err() {
                            return;
                        }
                    }
                });
                let mut got = 0;
                while got < SIZE {
                    got += reader.read().await.ok_or("the stream ended early")?.len();
                }
                best = best.min(start.elapsed().as_secs_f64());
            }
            println!(
                "writes of {piece:>9} bytes: {:>6.0} MB/s each way (best of {ROUNDS})",
                SIZE as f64 / best / 1e6
            );
        }
        Ok(())
    })
}
