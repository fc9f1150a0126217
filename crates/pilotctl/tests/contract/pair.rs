//! Two nodes and a rendezvous on loopback, all started through the binary.

use crate::support::{Home, Ran};
use std::io::Write as _;
use std::process::{Child, ChildStdin, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for something that happens in another process.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Two running nodes. Dropped, everything is stopped.
pub struct Pair {
    /// Node 1, `agent-alpha`.
    pub a: Home,
    /// Node 2, `agent-beta`.
    pub b: Home,
    _rendezvous: Home,
}

/// Address of node 1.
pub const ALPHA: &str = "0:0000.0000.0001";
/// Address of node 2.
pub const BETA: &str = "0:0000.0000.0002";

impl Pair {
    /// Both public: they reach each other without trust.
    pub fn public() -> Pair {
        Pair::start(&["--public"])
    }

    /// Both private, no trust.
    pub fn private() -> Pair {
        Pair::start(&[])
    }

    fn start(flags: &[&str]) -> Pair {
        let rendezvous = Home::new();
        let at = rendezvous
            .json(&["rendezvous", "start", "--registry-addr=127.0.0.1:0", "--beacon-addr=127.0.0.1:0"])
            .data();
        let text = |key: &str| at[key].as_str().expect("an address").to_owned();
        let (registry, beacon) = (text("registry_addr"), text("beacon_addr"));
        let node = |name: &str, address: &str| {
            let home = Home::new();
            let mut args = vec!["daemon", "start", "--registry", &registry, "--beacon", &beacon];
            args.extend(["--listen", "127.0.0.1:0", "--hostname", name]);
            args.extend(flags);
            assert_eq!(home.json(&args).data()["address"], address);
            home
        };
        Pair { a: node("agent-alpha", ALPHA), b: node("agent-beta", BETA), _rendezvous: rendezvous }
    }

    /// Makes the two trust each other.
    pub fn trust(self) -> Pair {
        let waiting = Background::start(&self.a, &["--json", "handshake", "2", "--wait"]);
        until("the request arrives", || self.b.json(&["pending"]).data()["pending"][0]["node_id"] == 1);
        self.b.json(&["approve", "1"]).data();
        assert_eq!(waiting.finish().data()["status"], "trusted");
        self
    }
}

/// Asks again and again until the answer is yes.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// A command that runs while the test goes on. Dropped, it is killed.
pub struct Background {
    child: Option<Child>,
}

impl Background {
    pub fn start(home: &Home, args: &[&str]) -> Background {
        let mut command = home.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Background { child: Some(command.spawn().expect("the binary runs")) }
    }

    /// A `recv`, once it is bound.
    pub fn recv(home: &Home, port: &str, args: &[&str]) -> Background {
        let before = ports(home);
        let serving = Background::start(home, &[&["--json", "recv", port], args].concat());
        until("the port is bound", || ports(home) > before);
        serving
    }

    pub fn stdin(&mut self) -> ChildStdin {
        self.child.as_mut().and_then(|c| c.stdin.take()).expect("taken once")
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().expect("a child of ours").is_some())
    }

    /// Waits for the end.
    pub fn finish(mut self) -> Ran {
        let mut child = self.child.take().expect("runs");
        drop(child.stdin.take());
        let out = child.wait_with_output().expect("it ends");
        Ran {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ports(home: &Home) -> u64 {
    home.json(&["info"]).data()["ports"].as_u64().expect("ports")
}

/// Runs a command with these bytes on stdin; stdout as it is.
pub fn piped(home: &Home, args: &[&str], input: &[u8]) -> (i32, Vec<u8>, String) {
    let mut command = home.command(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that ends early closes its stdin.
        let _ = stdin.write_all(&input);
    });
    let out = child.wait_with_output().expect("it ends");
    writer.join().expect("the writer ends");
    (out.status.code().unwrap_or(-1), out.stdout, String::from_utf8_lossy(&out.stderr).into_owned())
}

/// Bytes without a pattern, the same every time.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
    .collect()
}
