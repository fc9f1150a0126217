//! Hosts and links in the kernel: packets of real processes go where they should, and suffer what was asked.

mod common;

use common::{PATIENCE, wait_until};
use pilot_netlab::{Lab, Link};
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
