//! Agents in places of the network laboratory: a daemon of ours each, one rendezvous for all.

use pilot_netlab::{Host, Lab, Link, Place, Process, Site};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Delay of every place's way to the Internet: 40 ms there and back between two places.
pub const UPLINK: Link = Link::new().delay(Duration::from_millis(10));
/// How long something that has to happen may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(30);

/// A laboratory with a rendezvous on a public host.
pub struct Net {
    pub lab: Lab,
    pub dir: tempfile::TempDir,
    pub public: Host,
    _rendezvous: Process,
}

/// Whose daemon an agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Make {
    Ours,
    /// The reference 1.18.0.
    Reference,
}

/// An agent.
pub struct Agent {
    pub name: String,
    make: Make,
    pub place: Place,
    home: PathBuf,
    daemon: Option<Process>,
    rendezvous: String,
}

impl Net {
    pub fn new(seed: u64) -> Net {
        let lab = Lab::with_seed(seed).expect("the laboratory needs root");
        let dir = tempfile::Builder::new().prefix("pilot-grid-").tempdir().expect("temporary directory");
        let public = lab.host("public").on(lab.internet(), Link::new()).start().expect("host");
        let mut command = pilotctl(dir.path());
        command.args(["rendezvous", "start", "--foreground", "--registry-addr", "[::]:9000"]);
        command.args(["--beacon-addr", "[::]:9001", "--store"]).arg(dir.path().join("registry.db"));
        log_to(&mut command, &dir.path().join("rendezvous.log"));
        let rendezvous = public.spawn(command).expect("our binary starts");
        let registry = (public.v4(), 9000);
        wait_until("the rendezvous listens", || {
            public.run(|| std::net::TcpStream::connect(registry).is_ok()).expect("the host's network")
        });
        Net { lab, dir, public, _rendezvous: rendezvous }
    }

    /// An agent in a place of its own.
    pub fn agent(&self, site: Site, name: &str, number: u8) -> Agent {
        self.agent_of(Make::Ours, site, name, number)
    }

    /// The same, with a daemon of that make.
    pub fn agent_of(&self, make: Make, site: Site, name: &str, number: u8) -> Agent {
        let place = Place::new(&self.lab, site, name, number, UPLINK).expect("place");
        self.agent_in(make, place, name)
    }

    /// An agent on the same network as another.
    pub fn neighbour(&self, of: &Agent, name: &str) -> Agent {
        let Place { site, router, .. } = &of.place;
        let router = router.clone().expect("it has a router");
        let host = self.lab.host(name).on(router.lan(), Link::new()).start().expect("host");
        let (carrier, mapping_router, proxy) = (None, None, None);
        let place = Place { site: *site, host, router: Some(router), carrier, mapping_router, proxy };
        self.agent_in(Make::Ours, place, name)
    }

    fn agent_in(&self, make: Make, place: Place, name: &str) -> Agent {
        let home = self.dir.path().join(name);
        fs::create_dir_all(&home).expect("home");
        let v6 = place.site == Site::V6Only;
        let rendezvous = if v6 { format!("[{}]", self.public.v6()) } else { self.public.v4().to_string() };
        Agent { name: name.to_owned(), make, place, home, daemon: None, rendezvous }
    }
}

fn pilotctl(home: &Path) -> Command {
    in_home(Path::new(env!("CARGO_BIN_EXE_pilotctl")), home)
}

fn reference_daemon() -> PathBuf {
    let venv = std::env::var_os("PILOT_REFERENCE_VENV").expect(
        "PILOT_REFERENCE_VENV must name a Python environment with pilotprotocol==1.18.0 (scripts/test.sh)",
    );
    let lib = PathBuf::from(venv).join("lib");
    let python = fs::read_dir(&lib)
        .expect("the reference environment has a lib directory")
        .filter_map(Result::ok)
        .map(|e| e.path().join("site-packages/pilotprotocol/bin/pilot-daemon"))
        .find(|p| p.exists());
    python
        .unwrap_or_else(|| panic!("pilot-daemon of pilotprotocol==1.18.0 not found under {}", lib.display()))
}

/// A program with an environment of its own.
fn in_home(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", home).env("PILOT_SOCKET", home.join("pilot.sock")).env("PILOT_NO_SKILLINJECT", "1");
    command.current_dir(home).stdin(Stdio::null());
    command
}

fn log_to(command: &mut Command, path: &Path) {
    let log = fs::OpenOptions::new().create(true).append(true).open(path).expect("log file");
    command.stdout(log.try_clone().expect("log file")).stderr(log);
}

impl Agent {
    /// Starts the daemon; it registers in the background.
    pub fn start(&mut self) {
        let mut command = match self.make {
            Make::Ours => {
                let mut command = pilotctl(&self.home);
                command.args(["daemon", "start", "--foreground"]);
                command
            }
            Make::Reference => {
                let mut command = in_home(&reference_daemon(), &self.home);
                command.args(["-no-skillinject", "-telemetry-url", "", "-motd-feed-url", ""]);
                command.arg("-socket").arg(self.home.join("pilot.sock"));
                command
            }
        };
        command.args(["-trust-auto-approve", "-hostname", &self.name, "-listen", ":4000"]);
        command.args(["-registry", &format!("{}:9000", self.rendezvous)]);
        command.args(["-beacon", &format!("{}:9001", self.rendezvous)]);
        command.args(["-email", &format!("{}@example.com", self.name)]);
        command.arg("-identity").arg(self.home.join("identity.json"));
        log_to(&mut command, &self.home.join("daemon.log"));
        self.daemon = Some(self.place.host.spawn(command).expect("the daemon starts"));
    }

    /// Waits until the daemon answers and is registered; whether it is in time.
    pub fn registers_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if self.ctl(&["info"]).is_ok_and(|info| info["node_id"].as_u64().is_some_and(|id| id != 0)) {
                return true;
            }
            std::thread::park_timeout(POLL);
        }
        false
    }

    /// Stops the daemon and lets its NAT forget all about it.
    pub fn stop(&mut self) {
        self.daemon = None;
        for router in [&self.place.router, &self.place.carrier].into_iter().flatten() {
            router.forget_mappings();
        }
    }

    /// Takes from a stopped daemon what it remembers of its peers beside trust, which it would greet at its next start.
    pub fn forget_peers(&self) {
        let forgotten = fs::remove_file(self.home.join("peers.json"));
        assert!(forgotten.is_ok() || !self.home.join("peers.json").exists(), "{forgotten:?}");
    }

    /// Runs our CLI against the daemon: the data of its answer, which it may give although it failed, or the error it
    /// printed.
    pub fn ctl(&self, args: &[&str]) -> Result<Value, String> {
        let mut command = pilotctl(&self.home);
        command.args(args).arg("--json");
        let Output { status, stdout, stderr } = self.place.host.output(command).expect("our binary runs");
        let value: Value = serde_json::from_slice(&stdout).unwrap_or_default();
        match &value["data"] {
            Value::Null => Err(format!("{status}: {}", String::from_utf8_lossy(&stderr).trim())),
            data => Ok(data.clone()),
        }
    }

    /// Asks for mutual trust, and waits until there is.
    pub fn trust(&self, peer: &Agent) -> Result<(), String> {
        let asked = self.ctl(&["handshake", &peer.name, "grid", "--wait", "90s"])?;
        match asked["status"].as_str() {
            Some("trusted" | "already_trusted") => Ok(()),
            _ => Err(asked.to_string()),
        }
    }
}

/// Polls a condition until it holds; fails with its name.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::park_timeout(POLL);
    }
}
