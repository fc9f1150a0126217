//! Recovery with the real reference: restarts mid-tunnel, lost sessions, slow readers, a rendezvous that restarts, loss.

use crate::lab::{Daemon, Lab, Make, wait_until};
use std::time::{Duration, Instant};

/// What is promised once both sides are up and registered.
const PROMISE: Duration = Duration::from_secs(2);

/// Keeps a stream to a peer's echo service busy, and opens another one whenever it ends. Prints `ok` for each answer.
const HOLD: &str = r#"
import os, sys, time
from pilotprotocol import Driver
while True:
    try:
        with Driver(os.environ["PILOT_SOCKET"]) as d:
            conn = d.dial(sys.argv[1] + ":7", timeout=15)
            while True:
                conn.write(b"twenty bytes to echo")
                got = b""
                while len(got) < 20:
                    part = conn.read(20 - len(got))
                    if not part:
                        raise EOFError("end of stream")
                    got += part
                print("ok", flush=True)
                time.sleep(0.05)
    except Exception as e:
        print("lost", repr(e), flush=True)
        time.sleep(0.02)
"#;

/// Opens one stream after the other. Prints `begins`, then `ok` whenever an answer has come.
const TRY: &str = r#"
import os, sys, time
from pilotprotocol import Driver
print("begins", flush=True)
while True:
    try:
        with Driver(os.environ["PILOT_SOCKET"]) as d:
            while True:
                conn = d.dial(sys.argv[1] + ":7", timeout=15)
                conn.write(b"twenty bytes to echo")
                got = b""
                while len(got) < 20:
                    part = conn.read(20 - len(got))
                    if not part:
                        raise EOFError("end of stream")
                    got += part
                conn.close()
                print("ok", flush=True)
                time.sleep(0.1)
    except Exception as e:
        print("failed", repr(e), flush=True)
        time.sleep(0.02)
"#;

/// A public daemon of each make.
fn pair(lab: &Lab) -> (Daemon, Daemon) {
    (lab.daemon(Make::Ours, "ours", &["-public"]), lab.daemon(Make::Reference, "theirs", &["-public"]))
}

/// Kills the daemon of `victim` while the daemon of `dialler` has busy streams with it, or to it, and starts it again.
fn restarted(dialler: Make, victim: Make) {
    let lab = Lab::new();
    let (mut ours, mut theirs) = pair(&lab);
    let (from, to) = if dialler == Make::Ours { (&ours, &theirs) } else { (&theirs, &ours) };
    let address = to.address();
    let (hold, attempt) = (from.python_spawn(HOLD, &[&address]), from.python_spawn(TRY, &[&address]));
    for _ in 0..40 {
        hold.line("ok", Duration::from_secs(20));
    }
    attempt.line("ok", Duration::from_secs(20));
    let killed = if victim == Make::Ours { &mut ours } else { &mut theirs };
    killed.kill();
    killed.start();
    let mut up = Instant::now();
    if victim == dialler {
        // Not every client of the socket notices that its daemon has gone; a program started now need not.
        let from = if dialler == Make::Ours { &ours } else { &theirs };
        let fresh = from.python_spawn(TRY, &[&address]);
        (up, _) = fresh.line("begins", Duration::from_secs(20));
        let (at, _) = fresh.line("ok", PROMISE + Duration::from_secs(10));
        println!("{dialler:?} dials and restarts: traffic after {:?}", at - up);
        assert!(at - up < PROMISE, "{:?}", at - up);
        return;
    }
    let traffic = |script: &crate::lab::Script| loop {
        let (at, _) = script.line("ok", PROMISE + Duration::from_secs(10));
        if at > up {
            return at - up;
        }
    };
    let again = traffic(&attempt);
    hold.line("lost", PROMISE + Duration::from_secs(3));
    let held = traffic(&hold);
    println!(
        "{dialler:?} dials, {victim:?} restarts: traffic after {again:?}, the held stream replaced after {held:?}"
    );
    assert!(again < PROMISE, "{again:?}");
    assert!(held < PROMISE + PROMISE, "{held:?}");
}

#[test]
fn our_side_restarts_mid_tunnel_and_dials() {
    restarted(Make::Ours, Make::Ours);
}

#[test]
fn our_side_restarts_mid_tunnel_and_is_dialled() {
    restarted(Make::Reference, Make::Ours);
}

#[test]
fn their_side_restarts_mid_tunnel_and_we_dial() {
    restarted(Make::Ours, Make::Reference);
}

#[test]
fn their_side_restarts_mid_tunnel_and_dials() {
    restarted(Make::Reference, Make::Reference);
}

/// Accepts one stream, does not read for a while, then reads everything and says so.
const READER: &str = r#"
import hashlib, os, sys, time
from pilotprotocol import Driver
size, pause = int(sys.argv[1]), float(sys.argv[2])
with Driver(os.environ["PILOT_SOCKET"]) as d:
    listener = d.listen(4300)
    print("listening", flush=True)
    conn = listener.accept()
    first = conn.read(1)
    print("pausing", flush=True)
    time.sleep(pause)
    print("reading", flush=True)
    digest, count = hashlib.sha256(first), len(first)
    while count < size:
        part = conn.read(65536)
        if not part:
            raise EOFError("%d of %d" % (count, size))
        digest.update(part)
        count += len(part)
    print("read", digest.hexdigest(), flush=True)
    conn.write(b"done")
    time.sleep(30)
"#;

const WRITER: &str = r#"
import hashlib, os, sys
from pilotprotocol import Driver
size = int(sys.argv[2])
data = bytes((i * 7919 >> 5) & 255 for i in range(65536)) * (size // 65536)
with Driver(os.environ["PILOT_SOCKET"]) as d:
    conn = d.dial(sys.argv[1] + ":4300", timeout=15)
    for at in range(0, len(data), 65536):
        conn.write(data[at:at + 65536])
    print("written", hashlib.sha256(data).hexdigest(), flush=True)
    assert conn.read(4) == b"done"
    print("done", flush=True)
    conn.close()
"#;

/// A writer offers 8 MiB to a reader that pauses.
fn paused(writer: &Daemon, reader: &Daemon, pause: Duration) {
    let size = (8 << 20).to_string();
    let read = reader.python_spawn(READER, &[&size, &pause.as_secs().to_string()]);
    read.line("listening", Duration::from_secs(20));
    let write = writer.python_spawn(WRITER, &[&reader.address(), &size]);
    read.line("pausing", Duration::from_secs(20));
    let (resumed, _) = read.line("reading", pause + Duration::from_secs(10));
    let (at, got) = read.line("read ", Duration::from_secs(60));
    println!("{:?} to {:?}, pause {pause:?}: all after {:?}", writer.make, reader.make, at - resumed);
    let (_, sent) = write.line("written", Duration::from_secs(20));
    assert_eq!(got.strip_prefix("read "), sent.strip_prefix("written "), "the bytes are the same");
    write.line("done", Duration::from_secs(20));
}

#[test]
fn our_reader_resumes_after_a_minute_and_their_sender_goes_on() {
    let lab = Lab::new();
    let (ours, theirs) = pair(&lab);
    paused(&theirs, &ours, Duration::from_secs(60));
}

#[test]
fn our_reader_resumes_after_a_minute_and_our_sender_goes_on() {
    let lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &["-public"]);
    let b = lab.daemon(Make::Ours, "beta", &["-public"]);
    paused(&a, &b, Duration::from_secs(60));
}

/// Their daemon drops a client that has not read for 10 s.
#[test]
fn their_reader_resumes_after_eight_seconds_and_our_sender_goes_on() {
    let lab = Lab::new();
    let (ours, theirs) = pair(&lab);
    paused(&ours, &theirs, Duration::from_secs(8));
}

#[test]
fn a_stream_does_not_notice_that_the_rendezvous_restarts() {
    let mut lab = Lab::new();
    let (ours, theirs) = pair(&lab);
    let hold = ours.python_spawn(HOLD, &[&theirs.address()]);
    hold.line("ok", Duration::from_secs(20));
    let mut last = Instant::now();
    let mut steady = |count: u32| {
        for _ in 0..count {
            let (at, line) = hold.line("", PROMISE);
            assert_eq!(line, "ok", "the stream goes on");
            assert!(at - last < PROMISE, "a gap of {:?}", at - last);
            last = at;
        }
    };
    steady(20);
    lab.stop_rendezvous();
    steady(40);
    lab.start_rendezvous();
    let up = Instant::now();
    steady(10);
    // A command that needs the registry shows that the node is registered, by its name.
    wait_until("our node is registered again", Duration::from_secs(60), || {
        theirs.ctl(Make::Reference, &["find", "ours"]).code == 0
            && ours.ctl(Make::Ours, &["find", "theirs"]).code == 0
    });
    println!("found again {:?} after the rendezvous was up", up.elapsed());
    steady(10);
}
