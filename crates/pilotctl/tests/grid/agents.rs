//! Agents in places of the network laboratory: a daemon of ours each, one rendezvous for all.

use pilot_ipc::Client;
use pilot_netlab::{Host, Lab, Link, PROXY_CREDENTIALS, Place, Process, Site};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Delay of every place's way to the Internet: 40 ms there and back between two places.
pub const UPLINK: Link = Link::new().delay(Duration::from_millis(10));
/// How long something that has to happen may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Ports of the registry and of the beacon.
const REGISTRY: u16 = 9000;
const BEACON: u16 = 9001;
/// When peers that are not greeted were last seen, seconds before they were first seen.
const LONG_AGO: u64 = 24 * 3600;
const POLL: Duration = Duration::from_millis(30);

/// A laboratory with a rendezvous on a public host.
pub struct Net {
    pub lab: Lab,
    pub dir: tempfile::TempDir,
    pub public: Host,
    /// The processes of registry and beacon: one, or one each.
    pub rendezvous: Vec<Process>,
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
    /// SHA-256 of the rendezvous' certificate on port 443, for those who reach no other.
    fingerprint: Option<String>,
}

impl Net {
    pub fn new(seed: u64) -> Net {
        let mut net = Net::empty(seed);
        net.start_rendezvous(REGISTRY, BEACON);
        net
    }

    /// The same with a process for the registry, the first, and another for the beacon.
    pub fn apart(seed: u64) -> Net {
        let mut net = Net::empty(seed);
        net.start_rendezvous(REGISTRY, 9101);
        net.start_rendezvous(9100, BEACON);
        net
    }

    fn empty(seed: u64) -> Net {
        let lab = Lab::with_seed(seed).expect("the laboratory needs root");
        let dir = tempfile::Builder::new().prefix("pilot-grid-").tempdir().expect("temporary directory");
        let public = lab.host("public").on(lab.internet(), Link::new()).start().expect("host");
        Net { lab, dir, public, rendezvous: Vec::new() }
    }

    fn start_rendezvous(&mut self, registry: u16, beacon: u16) {
        let home = self.dir.path().join(format!("rendezvous-{registry}"));
        fs::create_dir_all(&home).expect("home");
        let mut command = pilotctl(&home);
        command.args(["rendezvous", "start", "--foreground", "--registry-addr", &format!("[::]:{registry}")]);
        command.args(["--beacon-addr", &format!("[::]:{beacon}"), "--store"]);
        command.arg(home.join("registry.db"));
        if (registry, beacon) == (REGISTRY, BEACON) {
            // The way in for those without UDP.
            command.args(["--tls-listen", "[::]:443"]);
        }
        log_to(&mut command, &home.join("rendezvous.log"));
        self.rendezvous.push(self.public.spawn(command).expect("our binary starts"));
        let to = (self.public.v4(), registry);
        wait_until("the rendezvous listens", || {
            self.public.run(|| std::net::TcpStream::connect(to).is_ok()).expect("the host's network")
        });
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

    fn fingerprint(&self) -> String {
        let path = self.dir.path().join(format!("rendezvous-{REGISTRY}/rendezvous.json"));
        let mut fingerprint = None;
        wait_until("the rendezvous tells of its certificate", || {
            let said: Option<Value> =
                fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            fingerprint = said.and_then(|said| said["tls_fingerprint"].as_str().map(str::to_owned));
            fingerprint.is_some()
        });
        fingerprint.expect("waited for")
    }

    /// The same, in a place that exists.
    pub fn agent_in(&self, make: Make, place: Place, name: &str) -> Agent {
        let home = self.dir.path().join(name);
        fs::create_dir_all(&home).expect("home");
        let v6 = place.site == Site::V6Only;
        let rendezvous = if v6 { format!("[{}]", self.public.v6()) } else { self.public.v4().to_string() };
        let fingerprint = place.proxy.is_some().then(|| self.fingerprint());
        Agent { name: name.to_owned(), make, place, home, daemon: None, rendezvous, fingerprint }
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
        if let (Some(proxy), Some(fingerprint)) = (&self.place.proxy, &self.fingerprint) {
            // Nothing else can be reached from there.
            let (user, password) = PROXY_CREDENTIALS;
            command.env("HTTPS_PROXY", format!("http://{user}:{password}@{}", proxy.addr()));
            command.args(["-registry", &format!("{}:443", self.rendezvous)]);
            command.args(["-registry-fingerprint", fingerprint]);
        } else {
            command.args(["-registry", &format!("{}:{REGISTRY}", self.rendezvous)]);
        }
        command.args(["-beacon", &format!("{}:{BEACON}", self.rendezvous)]);
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

    /// Stops the daemon and lets its NAT forget all about it. The next one finds the keys of its peers, but greets none of
    /// them: it is made to look as if they had not been seen for long.
    pub fn stop(&mut self) {
        self.daemon = None;
        let path = self.home.join("peers.json");
        if let Ok(text) = fs::read(&path) {
            let mut peers: Value = serde_json::from_slice(&text).expect("JSON");
            for peer in peers["peers"].as_array_mut().expect("a list") {
                peer["last_seen"] =
                    peer["first_seen"].as_u64().expect("a time").saturating_sub(LONG_AGO).into();
            }
            fs::write(&path, peers.to_string()).expect("peers.json");
        }
        for router in [&self.place.router, &self.place.carrier].into_iter().flatten() {
            router.forget_mappings();
        }
    }

    /// Stops the daemon where it stands, as a machine that goes to sleep does, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        let id = self.daemon.as_ref().expect("it runs").id();
        let pid = rustix::process::Pid::from_raw(id.cast_signed()).expect("a process has a number");
        let signal = if frozen { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        rustix::process::kill_process(pid, signal).expect("the daemon runs");
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

    /// A client of the daemon, of the test's own process.
    pub async fn client(&self) -> Client {
        let path = self.home.join("pilot.sock");
        Client::connect(&path).await.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Asks for mutual trust; the answer may come later.
    pub fn ask_for_trust(&self, peer: &Agent) {
        // An error shows when trust is waited for.
        drop(self.ctl(&["handshake", &peer.name, "grid"]));
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
