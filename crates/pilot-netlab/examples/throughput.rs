//! What the laboratory itself carries: one TCP stream between two hosts over unlimited links, and the same over a
//! NAT with delay. `cargo run --release -p pilot-netlab --example throughput`

use pilot_netlab::{Host, Lab, Link, Nat};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How long each stream is driven.
const RUN: Duration = Duration::from_secs(3);

fn main() -> io::Result<()> {
    let lab = Lab::with_seed(1)?;
    let server = lab.host("server").on(lab.internet(), Link::new()).start()?;
    let client = lab.host("client").on(lab.internet(), Link::new()).start()?;
    measure("two hosts, plain links", &client, &server)?;
    let far = Link::new().delay(Duration::from_millis(10)).loss(0.0001);
    let router = lab.router(lab.internet(), far, &["192.168.1.0/24"])?.nat(Nat::port_restricted()).start();
    let inside = lab.host("inside").on(router.lan(), Link::new()).start()?;
    measure("through a NAT, 20 ms round trip, 0.01 % loss", &inside, &server)
}

fn measure(name: &str, from: &Host, to: &Host) -> io::Result<()> {
    let listener = to.run(|| TcpListener::bind((to.v4(), 0)))??;
    let addr = listener.local_addr()?;
    let mut stream = from.run(|| TcpStream::connect(addr))??;
    let reader = std::thread::spawn(move || -> io::Result<u64> {
        let (mut stream, _) = listener.accept()?;
        let (mut buf, mut total) = (vec![0; 1 << 18], 0);
        loop {
            match stream.read(&mut buf)? {
                0 => return Ok(total),
                n => total += n as u64,
            }
        }
    });
    let start = Instant::now();
    let block = vec![7; 1 << 18];
    while start.elapsed() < RUN {
        stream.write_all(&block)?;
    }
    drop(stream);
    let total = reader.join().map_err(|_| io::Error::other("the reader panicked"))??;
    let took = start.elapsed().as_secs_f64();
    println!("{name}: {:.0} Mbit/s ({total} bytes in {took:.2} s)", total as f64 * 8.0 / took / 1e6);
    Ok(())
}
