//! Hosts and links in the kernel: packets of real processes go where they should, and suffer what was asked.

#![allow(clippy::unwrap_used)]

mod common;

use common::{PATIENCE, wait_until};
use pilot_netlab::{Lab, Link, Nat};
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn a_link_delays_and_loses_what_was_asked() {
    let lab = Lab::with_seed(1).expect("root");
    let link = Link::new().delay(Duration::from_millis(20)).loss(0.05);
    let a = lab.host("a").on(lab.internet(), link).start().expect("host");
    let b = lab.host("b").on(lab.internet(), Link::new()).start().expect("host");
    let at_b = b.run(|| UdpSocket::bind((b.v4(), 7)).unwrap()).unwrap();
    let at_a = a.run(|| UdpSocket::bind((a.v4(), 0)).unwrap()).unwrap();
    at_b.set_read_timeout(Some(PATIENCE)).unwrap();

    let to = at_b.local_addr().unwrap();
    let (mut sent, mut got, mut buf) = (0u64, Vec::new(), [0; 8]);
    // In small bursts, so that the receive buffer never overflows.
    for _ in 0..40 {
        let start = Instant::now();
        for _ in 0..100 {
            at_a.send_to(&sent.to_be_bytes(), to).unwrap();
            sent += 1;
        }
        wait_until("all are on the link", || a.counts(0).0.offered == sent);
        while (got.len() as u64) < a.counts(0).0.delivered {
            at_b.recv(&mut buf).unwrap();
            got.push(u64::from_be_bytes(buf));
        }
        assert!(start.elapsed() >= Duration::from_millis(20), "{:?}", start.elapsed());
    }
    assert!(got.is_sorted());
    // 5 % of 4,000 is 200, with a standard deviation of 14.
    let (up, _) = a.counts(0);
    assert!((140..=260).contains(&up.lost), "{up:?}");
    assert_eq!(up.lost + up.delivered, sent);
}

#[test]
fn a_link_limits_reorders_and_duplicates_real_packets() {
    const COUNT: u64 = 400;
    let lab = Lab::with_seed(4).expect("root");
    // 1,250 bytes take 0.5 ms.
    let link = Link::new().mbit(20).queue(1 << 20).duplicate(0.1).reorder(0.05, Duration::from_millis(5));
    let a = lab.host("a").on(lab.internet(), link).start().expect("host");
    let b = lab.host("b").on(lab.internet(), Link::new()).start().expect("host");
    let at_b = b.run(|| UdpSocket::bind((b.v4(), 7)).unwrap()).unwrap();
    let at_a = a.run(|| UdpSocket::bind((a.v4(), 0)).unwrap()).unwrap();
    at_b.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = at_b.local_addr().unwrap();
    let start = Instant::now();
    let sender = std::thread::spawn(move || {
        for i in 0..COUNT {
            let mut packet = [0; 1250 - 28];
            packet[..8].copy_from_slice(&i.to_be_bytes());
            at_a.send_to(&packet, to).unwrap();
        }
    });
    let (mut got, mut buf) = (Vec::new(), [0; 2048]);
    let all = || (a.counts(0).0.offered == COUNT).then(|| a.counts(0).0.delivered);
    while all().is_none_or(|n| (got.len() as u64) < n) {
        at_b.recv(&mut buf).unwrap();
        got.push(u64::from_be_bytes(buf[..8].try_into().unwrap()));
    }
    let took = start.elapsed();
    sender.join().unwrap();
    assert!(took >= Duration::from_millis(200), "{took:?}");
    assert!(took < Duration::from_secs(2), "{took:?}");
    let mut seen = std::collections::HashMap::<u64, u32>::new();
    got.iter().for_each(|i| *seen.entry(*i).or_default() += 1);
    assert_eq!(seen.len() as u64, COUNT, "none is lost");
    let twice = seen.values().filter(|n| **n == 2).count();
    // 40, with a standard deviation of 6.
    assert!((16..=64).contains(&twice), "{twice}");
    let overtaken = got.windows(2).filter(|w| w[1] < w[0]).count();
    // 20 held back, with a standard deviation of 4.4; neighbours of those count once.
    assert!((4..=38).contains(&overtaken), "{overtaken}");
}

#[test]
fn a_process_on_a_host_sees_that_host_and_its_environment() {
    let lab = Lab::with_seed(2).expect("root");
    let a = lab.host("a").on(lab.internet(), Link::new()).start().expect("host");
    let mut command = Command::new("sh");
    command.args(["-c", "ip -o addr show dev eth0; echo $COLOUR; pwd; cat /proc/self/comm"]);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("COLOUR", "blue");
    let output = a.output(command).unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains(&a.v4().to_string()) && text.contains(&a.v6().to_string()), "{text}");
    let cwd = std::env::current_dir().unwrap();
    assert!(text.ends_with(&format!("blue\n{}\ncat\n", cwd.display())), "{text}");
}

#[test]
fn a_process_ends_with_the_laboratory_even_if_it_hides() {
    let lab = Lab::with_seed(3).expect("root");
    let a = lab.host("a").on(lab.internet(), Link::new()).start().expect("host");
    let mut command = Command::new("sh");
    // Leaves its parent and its session; the open end of the pipe tells when it is gone.
    command.args(["-c", "setsid sh -c 'trap \"\" HUP TERM; echo up; sleep 1000; sleep 1000' &"]);
    command.stdout(Stdio::piped());
    let mut child = a.spawn(command).unwrap();
    let mut out = child.stdout.take().unwrap();
    assert!(child.wait().unwrap().success());
    let mut line = [0; 3];
    std::io::Read::read_exact(&mut out, &mut line).unwrap();
    drop(lab);
    assert_eq!(std::io::Read::read(&mut out, &mut line).unwrap(), 0, "the pipe is closed");
}

#[test]
fn a_host_goes_from_one_network_to_another() {
    let lab = Lab::with_seed(5).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().expect("host");
    let at_server = server.run(|| UdpSocket::bind((server.v4(), 7)).unwrap()).unwrap();
    at_server.set_read_timeout(Some(PATIENCE)).unwrap();
    let nat =
        |lan: &str| lab.router(lab.internet(), Link::new(), &[lan]).unwrap().nat(Nat::full_cone()).start();
    let (cable, radio) = (nat("192.168.1.0/24"), nat("192.168.2.0/24"));
    let host =
        lab.host("host").on(cable.lan(), Link::new()).on(radio.lan(), Link::new()).start().expect("host");
    let socket = host.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    for (n, router) in [(0, &cable), (1, &radio), (0, &cable)] {
        host.prefer(n).unwrap();
        socket.send_to(b"here", at_server.local_addr().unwrap()).unwrap();
        assert_eq!(at_server.recv_from(&mut [0; 8]).unwrap().1.ip(), router.v4(), "interface {n}");
    }
    // An interface that is taken away is no burden to the others.
    let mut delete = Command::new("ip");
    delete.args(["link", "del", "eth1"]);
    assert!(host.output(delete).unwrap().status.success());
    socket.send_to(b"here", at_server.local_addr().unwrap()).unwrap();
    assert_eq!(at_server.recv_from(&mut [0; 8]).unwrap().1.ip(), cable.v4());
}
