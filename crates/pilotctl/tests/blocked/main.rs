//! Agents in networks without UDP: our daemons behind firewalls and proxies of the network laboratory.
#![allow(clippy::unwrap_used)]

use pilot_netlab::{Firewall, Host, Lab, Link, PROXY_CREDENTIALS, Place, Process, Site};
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Delay of every place's way to the Internet.
const UPLINK: Link = Link::new().delay(Duration::from_millis(10));
/// How long something that has to happen may take.
const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(50);
/// Size of the file that is sent.
const FILE_BYTES: usize = 20_000_000;

/// A laboratory with a rendezvous on a public host: registry and beacon on their own ports, and both on 443.
struct Net {
    lab: Lab,
    dir: tempfile::TempDir,
    public: Host,
    fingerprint: String,
    _rendezvous: Process,
}

struct Agent {
    name: String,
    place: Place,
    home: PathBuf,
    args: Vec<String>,
    env: Vec<(&'static str, String)>,
    daemon: Option<Process>,
}

fn pilotctl(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotctl"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", home).env("PILOT_SOCKET", home.join("pilot.sock"));
    command.current_dir(home).stdin(Stdio::null());
    command
}

fn log_to(command: &mut Command, path: &Path) {
    let log = fs::OpenOptions::new().create(true).append(true).open(path).expect("log file");
    command.stdout(log.try_clone().expect("log file")).stderr(log);
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain: {what}");
        std::thread::park_timeout(POLL);
    }
}

impl Net {
    fn new(seed: u64) -> Net {
        let lab = Lab::with_seed(seed).expect("the laboratory needs root");
        let dir = tempfile::Builder::new().prefix("pilot-blocked-").tempdir().expect("temporary directory");
        let public = lab.host("public").on(lab.internet(), Link::new()).start().expect("host");
        let mut command = pilotctl(dir.path());
        command.args(["rendezvous", "start", "--foreground", "--registry-addr", "[::]:9000"]);
        command.args(["--beacon-addr", "[::]:9001", "--tls-listen", "[::]:443", "--store"]);
        command.arg(dir.path().join("registry.db"));
        log_to(&mut command, &dir.path().join("rendezvous.log"));
        let rendezvous = public.spawn(command).expect("our binary starts");
        let state = dir.path().join("rendezvous.json");
        let mut fingerprint = None;
        wait_until("the rendezvous listens", || {
            let state: Option<Value> =
                fs::read(&state).ok().and_then(|text| serde_json::from_slice(&text).ok());
            fingerprint = state.and_then(|state| state["tls_fingerprint"].as_str().map(str::to_owned));
            fingerprint.is_some()
        });
        Net { lab, dir, public, fingerprint: fingerprint.unwrap(), _rendezvous: rendezvous }
    }

    /// An agent that knows the port with TLS alone.
    fn agent(&self, site: Site, name: &str, number: u8) -> Agent {
        let registry = format!("{}:443", self.public.v4());
        let args = ["--registry", &registry, "--registry-fingerprint", &self.fingerprint];
        self.agent_with(site, name, number, &args)
    }

    fn agent_with(&self, site: Site, name: &str, number: u8, args: &[&str]) -> Agent {
        let place = Place::new(&self.lab, site, name, number, UPLINK).expect("place");
        let home = self.dir.path().join(name);
        fs::create_dir_all(&home).expect("home");
        let mut all = vec!["--trust-auto-approve", "--hostname", name, "--log-level", "debug"];
        all.extend(args);
        let args = all.into_iter().map(str::to_owned).collect();
        Agent { name: name.to_owned(), place, home, args, env: Vec::new(), daemon: None }
    }
}

impl Agent {
    fn start(&mut self) {
        let mut command = pilotctl(&self.home);
        command.args(["daemon", "start", "--foreground"]).args(&self.args);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        log_to(&mut command, &self.home.join("daemon.log"));
        self.daemon = Some(self.place.host.spawn(command).expect("the daemon starts"));
    }

    fn is_registered(&self) -> bool {
        self.ctl(&["info"]).is_ok_and(|info| info["node_id"].as_u64().is_some_and(|id| id != 0))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.home.join("daemon.log")).unwrap_or_default()
    }

    fn transport(&self) -> String {
        self.ctl(&["info"])
            .map_or_else(|e| e, |info| info["transport"].as_str().unwrap_or_default().to_owned())
    }

    /// Our CLI against the daemon: its data, or the error it printed.
    fn ctl(&self, args: &[&str]) -> Result<Value, String> {
        self.ctl_with(args, b"")
    }

    fn ctl_with(&self, args: &[&str], stdin: &[u8]) -> Result<Value, String> {
        let mut command = pilotctl(&self.home);
        command.args(args).arg("--json").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = self.place.host.spawn(command).expect("our binary runs");
        process.stdin.take().unwrap().write_all(stdin).unwrap();
        let Output { status, stdout, stderr } = process.wait_with_output().unwrap();
        let value: Value = serde_json::from_slice(&stdout).unwrap_or_default();
        match &value["data"] {
            Value::Null => Err(format!("{status}: {}", String::from_utf8_lossy(&stderr).trim())),
            data => Ok(data.clone()),
        }
    }

    fn trust(&self, peer: &Agent) {
        let asked = self.ctl(&["handshake", &peer.name, "blocked", "--wait", "90s"]).expect("handshake");
        assert!(matches!(asked["status"].as_str(), Some("trusted" | "already_trusted")), "{asked}");
    }

    #[track_caller]
    fn pings(&self, peer: &Agent) {
        let said = self.ctl(&["ping", &peer.name, "--count", "1", "--timeout", "30s", "--no-auto-handshake"]);
        let said = said.expect("ping");
        assert!(said["results"][0]["error"].is_null() && said["results"][0]["path"].is_string(), "{said}");
    }

    /// Sends a file and says how long it took; the receiver's hash is that of the sender.
    fn sends_file(&self, peer: &Agent) -> Duration {
        let path = self.home.join("file.bin");
        let noise: Vec<u8> =
            (0..FILE_BYTES as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        fs::write(&path, noise).unwrap();
        let began = Instant::now();
        let sent = self.ctl(&["send-file", &peer.name, &path.display().to_string()]).expect("send-file");
        let took = began.elapsed();
        assert_eq!(
            (sent["bytes"].as_u64(), &sent["verified"]),
            (Some(FILE_BYTES as u64), &Value::Bool(true)),
            "{sent}"
        );
        let mut received = Vec::new();
        wait_until("the file has arrived", || {
            let dir = fs::read_dir(peer.home.join(".pilot/received"));
            received = dir.map_or_else(
                |_| Vec::new(),
                |dir| dir.filter_map(|e| Some(e.ok()?.path()).filter(|p| p.is_file())).collect(),
            );
            !received.is_empty()
        });
        assert_eq!(fs::read(&received[0]).unwrap(), fs::read(&path).unwrap(), "the bytes are the same");
        took
    }

    fn message_reaches(&self, peer: &Agent) {
        let text = format!("hello from {}", self.name);
        self.ctl(&["send-message", &peer.name, "--data", &text]).expect("send-message");
        wait_until("the message is in the inbox", || {
            peer.ctl(&["inbox"]).is_ok_and(|inbox| inbox.to_string().contains(&text))
        });
    }
}

fn start_all(agents: &mut [&mut Agent]) {
    agents.iter_mut().for_each(|agent| agent.start());
    for agent in agents {
        wait_until(&format!("{} registers", agent.name), || agent.is_registered());
    }
}

fn work(a: &Agent, b: &Agent) {
    a.trust(b);
    a.pings(b);
    b.pings(a);
    a.message_reaches(b);
    b.message_reaches(a);
    let took = a.sends_file(b);
    println!("{} to {}: {FILE_BYTES} bytes in {} ms", a.name, b.name, took.as_millis());
}

#[test]
fn two_agents_behind_proxies_with_passwords_work_together() {
    let net = Net::new(71);
    let (mut a, mut b) = (net.agent(Site::ProxyOnly, "a", 1), net.agent(Site::ProxyOnly, "b", 2));
    let (user, password) = PROXY_CREDENTIALS;
    // One has the password in the variable every program knows, the other in its own file.
    let proxy = a.place.proxy.as_ref().unwrap().addr();
    a.env.push(("HTTPS_PROXY", format!("http://{user}:{password}@{proxy}")));
    let proxy = b.place.proxy.as_ref().unwrap().addr().to_string();
    b.env.push(("https_proxy", format!("http://{proxy}")));
    let kept =
        b.ctl_with(&["proxy", "set-credentials", &proxy, "--user", user], password.as_bytes()).unwrap();
    assert_eq!(kept["proxy"], proxy);
    start_all(&mut [&mut a, &mut b]);
    for agent in [&a, &b] {
        wait_until("the WebSocket is in use", || agent.transport() == "compat");
    }
    work(&a, &b);
}

#[test]
fn a_proxy_that_wants_a_password_nobody_gave_is_told_of() {
    let net = Net::new(72);
    let mut a = net.agent(Site::ProxyOnly, "a", 1);
    let proxy = a.place.proxy.as_ref().unwrap().addr();
    a.env.push(("HTTPS_PROXY", format!("http://{proxy}")));
    a.start();
    wait_until("the daemon says so", || {
        a.log().contains(&format!("pilotctl proxy set-credentials {proxy} --user NAME"))
    });
    // With the password it goes on, without a restart if it still runs.
    let (user, password) = PROXY_CREDENTIALS;
    a.ctl_with(&["proxy", "set-credentials", &proxy.to_string(), "--user", user], password.as_bytes())
        .unwrap();
    a.daemon = None;
    a.start();
    wait_until("it registers", || a.is_registered());
}

#[test]
fn two_agents_without_udp_work_together_through_port_443() {
    let net = Net::new(73);
    let (mut a, mut b) = (net.agent(Site::UdpBlocked, "a", 1), net.agent(Site::UdpBlocked, "b", 2));
    start_all(&mut [&mut a, &mut b]);
    for agent in [&a, &b] {
        wait_until("the WebSocket is in use", || agent.transport() == "compat");
    }
    work(&a, &b);
}

#[test]
fn an_agent_leaves_udp_when_it_is_blocked_and_takes_it_again_when_it_is_back() {
    let net = Net::new(74);
    // The usual settings, and no word of port 443 or a certificate: the registry tells.
    let registry = format!("{}:9000", net.public.v4());
    let mut a = net.agent_with(Site::PortRestricted, "a", 1, &["--registry", &registry]);
    let mut b = net.agent_with(Site::Public, "b", 2, &["--registry", &registry]);
    start_all(&mut [&mut a, &mut b]);
    a.trust(&b);
    a.pings(&b);
    assert_eq!(a.transport(), "udp");
    let router = a.place.router.clone().unwrap();
    // Nothing but port 443 is left.
    router.set_firewall(Firewall { only_tcp: Some((None, 443)), ..Firewall::no_udp() });
    wait_until("the WebSocket is in use", || a.transport() == "compat");
    a.pings(&b);
    b.pings(&a);
    // A new process finds its way with what the registry once told.
    a.daemon = None;
    a.start();
    wait_until("it registers through port 443", || a.is_registered());
    wait_until("the WebSocket is in use", || a.transport() == "compat");
    // A start without the registry is for when no way leads there.
    assert!(!a.log().contains("started without the registry"), "{}", a.log());
    a.pings(&b);
    router.set_firewall(Firewall::open());
    wait_until("UDP is in use again", || a.transport() == "udp");
    wait_until("the path is direct again", || {
        a.pings(&b);
        let peers = a.ctl(&["peers", "--all"]).unwrap();
        peers["peers"].as_array().is_some_and(|peers| peers.iter().any(|peer| peer["relay"] == false))
    });
}
