//! A path that loses 5 % of all packets both ways, between one of ours and one of theirs, each on a host of its own.

use crate::lab::{Make, reference_binary, venv, wait_until};
use pilot_netlab::{Host, Lab, Link, Process};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// 100 echoes over one stream, 20 bytes each, through the peer's echo service. Prints the longest wait in seconds.
const ECHOES: &str = r#"
import os, sys, time
from pilotprotocol import Driver
with Driver(os.environ["PILOT_SOCKET"]) as d:
    start = time.monotonic()
    conn = d.dial(sys.argv[1] + ":7", timeout=15)
    worst = time.monotonic() - start
    for _ in range(100):
        start = time.monotonic()
        conn.write(b"twenty bytes to echo")
        got = b""
        while len(got) < 20:
            part = conn.read(20 - len(got))
            assert part, "end of stream"
            got += part
        worst = max(worst, time.monotonic() - start)
    conn.close()
print(worst)
"#;

struct Node<'a> {
    make: Make,
    host: &'a Host,
    home: PathBuf,
    registry: String,
    beacon: String,
    process: Option<Process>,
}

impl Node<'_> {
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
        command.env("HOME", &self.home).env("PILOT_SOCKET", self.home.join("pilot.sock"));
        command.env("PILOT_REGISTRY", &self.registry).env("PILOT_NO_SKILLINJECT", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn start(&mut self) {
        let program = match self.make {
            Make::Reference => reference_binary("pilot-daemon"),
            Make::Ours => {
                let link = self.home.join("pilot-daemon");
                if !link.exists() {
                    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pilotctl"), &link).expect("link");
                }
                link
            }
        };
        let mut command = self.command(&program);
        command.args(["-registry", &self.registry, "-beacon", &self.beacon, "-public"]);
        command.args(["-listen", &format!("{}:4000", self.host.v4()), "-email", "a@example.com"]);
        command.arg("-socket").arg(self.home.join("pilot.sock"));
        command.arg("-identity").arg(self.home.join(".pilot/identity.json"));
        if self.make == Make::Reference {
            command.args(["-no-skillinject", "-telemetry-url", "", "-motd-feed-url", ""]);
        }
        self.process = Some(self.host.spawn(command).expect("the daemon starts"));
        wait_until("the daemon answers", Duration::from_secs(30), || self.address().is_some());
    }

    fn restart(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("the daemon runs");
            process.wait().expect("the daemon ends");
        }
        self.start();
    }

    fn address(&self) -> Option<String> {
        let mut command = self.command(Path::new(env!("CARGO_BIN_EXE_pilotctl")));
        command.args(["info", "--json"]);
        let said = self.host.output(command).expect("the CLI runs");
        let value: serde_json::Value = serde_json::from_slice(&said.stdout).ok()?;
        value["data"]["address"].as_str().map(str::to_owned)
    }

    /// The longest wait in seconds.
    fn echoes(&self, address: &str) -> f64 {
        let mut command = self.command(&venv().join("bin/python3"));
        command.args(["-c", ECHOES, address]);
        let said = self.host.output(command).expect("the script runs");
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        text.trim().parse().unwrap_or_else(|_| panic!("{text}\n{}", String::from_utf8_lossy(&said.stderr)))
    }
}

#[test]
fn five_percent_loss_both_ways_and_restarts_on_either_side() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let lab = Lab::with_seed(5).expect("root, ip and /dev/net/tun");
    let internet = lab.internet();
    let rendezvous = lab.host("rendezvous").on(internet, Link::new()).start().expect("a host");
    let lossy = Link::new().delay(Duration::from_millis(10)).loss(0.05);
    let [left, right] = [("left", lossy), ("right", Link::new())]
        .map(|(name, link)| lab.host(name).on(internet, link).start().expect("a host"));
    let (registry, beacon) = (format!("{}:9000", rendezvous.v4()), format!("{}:9001", rendezvous.v4()));
    let mut server = Command::new(env!("CARGO_BIN_EXE_pilotctl"));
    server.args([
        "rendezvous",
        "start",
        "--foreground",
        "--registry-addr",
        &registry,
        "--beacon-addr",
        &beacon,
    ]);
    server.arg("--store").arg(dir.path().join("registry.db")).env("HOME", dir.path());
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let _server = rendezvous.spawn(server).expect("the rendezvous starts");
    let node = |make, host, name: &str| {
        let home = dir.path().join(name);
        std::fs::create_dir_all(&home).expect("home");
        let mut node =
            Node { make, host, home, registry: registry.clone(), beacon: beacon.clone(), process: None };
        node.start();
        node
    };
    let mut ours = node(Make::Ours, &left, "ours");
    let mut theirs = node(Make::Reference, &right, "theirs");
    let check = |ours: &Node<'_>, theirs: &Node<'_>, when: &str| {
        let (a, b) = (ours.address().expect("an address"), theirs.address().expect("an address"));
        for (from, to) in [(ours, &b), (theirs, &a)] {
            let worst = from.echoes(to);
            println!("{when}, {:?} dials: longest wait {worst:.3} s", from.make);
            assert!(worst < 10.0, "{worst}");
        }
    };
    check(&ours, &theirs, "at first");
    ours.restart();
    check(&ours, &theirs, "after our restart");
    theirs.restart();
    check(&ours, &theirs, "after their restart");
    let (out, back) = left.counts(0);
    println!("lost: {out:?} {back:?}");
}
