//! A laboratory: one network namespace with nothing but loopback, our rendezvous in it, and daemons of both
//! makes. Everything ends with the value.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Whose program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Make {
    Ours,
    Reference,
}

impl Make {
    pub fn other(self) -> Make {
        match self {
            Make::Ours => Make::Reference,
            Make::Reference => Make::Ours,
        }
    }
}

pub struct Lab {
    pub dir: tempfile::TempDir,
    holder: Child,
    rendezvous: Option<Child>,
    next_port: std::cell::Cell<u16>,
    tls: bool,
}

/// A running daemon and its home.
pub struct Daemon {
    pub make: Make,
    pub name: String,
    pub home: PathBuf,
    pub socket: PathBuf,
    netns: u32,
    flags: Vec<String>,
    child: Option<Child>,
}

/// A running script, what it has printed and when.
pub struct Script {
    child: Child,
    said: std::sync::mpsc::Receiver<(Instant, String)>,
}

impl Script {
    /// The next line that starts with this, and when it came; others are skipped.
    #[track_caller]
    pub fn line(&self, start: &str, limit: Duration) -> (Instant, String) {
        let deadline = Instant::now() + limit;
        let mut others = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.said.recv_timeout(left) {
                Ok((at, line)) if line.starts_with(start) => return (at, line),
                Ok((_, line)) => others.push(line),
                Err(error) => panic!("no line {start:?} within {limit:?} ({error}); instead {others:?}"),
            }
        }
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command said.
pub struct Said {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl std::fmt::Debug for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.stdout[..self.stdout.len().min(2_000)];
        write!(f, "exit {}\nstdout: {}\nstderr: {}", self.code, String::from_utf8_lossy(shown), self.stderr)
    }
}

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// `data` of a success envelope; panics with everything the command said otherwise.
    #[track_caller]
    pub fn data(&self) -> Value {
        assert_eq!(self.code, 0, "command failed: {self:?}");
        let value: Value = serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|e| panic!("not JSON ({e}): {}", self.text()));
        assert_eq!(value["status"], "ok", "{value}");
        value["data"].clone()
    }

    /// `code` of an error envelope on stderr.
    #[track_caller]
    pub fn error_code(&self) -> String {
        assert_ne!(self.code, 0, "command did not fail: {self:?}");
        let line = self.stderr.lines().rev().find(|l| l.starts_with('{')).unwrap_or_default();
        let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        value["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub fn venv() -> PathBuf {
    let venv = std::env::var_os("PILOT_REFERENCE_VENV").expect(
        "PILOT_REFERENCE_VENV must name a Python environment with pilotprotocol==1.18.0 (scripts/test.sh)",
    );
    PathBuf::from(venv)
}

pub fn reference_binary(name: &str) -> PathBuf {
    let lib = venv().join("lib");
    let python = fs::read_dir(&lib)
        .expect("the reference environment has a lib directory")
        .filter_map(Result::ok)
        .map(|e| e.path().join("site-packages/pilotprotocol/bin").join(name))
        .find(|p| p.exists());
    python.unwrap_or_else(|| panic!("{name} of pilotprotocol==1.18.0 not found under {}", lib.display()))
}

impl Lab {
    /// A namespace with loopback and our rendezvous on 127.0.0.1:9000/9001.
    pub fn new() -> Lab {
        let lab = Lab::without_rendezvous();
        let mut lab = lab;
        lab.start_rendezvous();
        lab
    }

    /// The same, with the registry behind TLS and its certificate pinned by the daemons.
    pub fn with_tls() -> Lab {
        let mut lab = Lab::without_rendezvous();
        lab.tls = true;
        lab.start_rendezvous();
        wait_until("the fingerprint is known", Duration::from_secs(5), || lab.fingerprint().is_some());
        lab
    }

    fn without_rendezvous() -> Lab {
        let dir = tempfile::Builder::new().prefix("pilot-lab-").tempdir().expect("temporary directory");
        let mut holder = Command::new("unshare")
            .args(["--net", "--kill-child", "--fork", "sh", "-c"])
            .arg("ip link set lo up && echo ready && exec sleep 900")
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux) is installed");
        let mut line = String::new();
        let out = holder.stdout.take().expect("stdout is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("holder answers");
        assert_eq!(line, "ready\n", "network namespaces need root and iproute2");
        let links = Command::new("nsenter")
            .args(["--target", &netns_pid(&holder).to_string(), "--net", "cat", "/proc/self/net/dev"])
            .output()
            .expect("nsenter (util-linux) is installed");
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        let names: Vec<&str> =
            links.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim).collect();
        assert!(names.contains(&"lo"), "{links}");
        assert!(
            !names.iter().any(|n| n.starts_with("eth") || n.starts_with("en")),
            "not isolated: {names:?}"
        );
        Lab { dir, holder, rendezvous: None, next_port: std::cell::Cell::new(4001), tls: false }
    }

    fn netns(&self) -> u32 {
        netns_pid(&self.holder)
    }

    pub fn start_rendezvous(&mut self) {
        let store = self.dir.path().join("registry.db");
        let log = fs::File::create(self.dir.path().join("rendezvous.log")).expect("log file");
        let child = in_netns(self.netns(), Path::new(env!("CARGO_BIN_EXE_pilotctl")))
            .args(["rendezvous", "start", "--foreground", "--registry-addr", "127.0.0.1:9000"])
            .args(["--beacon-addr", "127.0.0.1:9001", "--store"])
            .arg(&store)
            .args(self.tls.then_some("--tls"))
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log file"))
            .stderr(log)
            .spawn()
            .expect("our binary starts");
        self.rendezvous = Some(child);
        let ready = || {
            in_netns(self.netns(), Path::new("sh"))
                .args([
                    "-c",
                    "command -v bash >/dev/null && bash -c 'exec 3<>/dev/tcp/127.0.0.1/9000' 2>/dev/null",
                ])
                .status()
                .is_ok_and(|s| s.success())
        };
        wait_until("our rendezvous listens", Duration::from_secs(10), ready);
    }

    /// SHA-256 of the registry's certificate, as the rendezvous reports it.
    fn fingerprint(&self) -> Option<String> {
        let state = fs::read(self.dir.path().join("rendezvous.json")).ok()?;
        let state: Value = serde_json::from_slice(&state).expect("the rendezvous writes JSON");
        state["tls_fingerprint"].as_str().map(str::to_owned)
    }

    /// Stops the rendezvous (SIGTERM) and waits for its end.
    pub fn stop_rendezvous(&mut self) {
        if let Some(mut child) = self.rendezvous.take() {
            terminate(&mut child);
        }
    }

    /// Starts a daemon and waits until it answers.
    pub fn daemon(&self, make: Make, name: &str, extra: &[&str]) -> Daemon {
        let home = self.dir.path().join(name);
        fs::create_dir_all(&home).expect("home");
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).expect("mode");
        let port = self.next_port.get();
        self.next_port.set(port + 1);
        let mut flags: Vec<String> = ["-registry", "127.0.0.1:9000", "-beacon", "127.0.0.1:9001", "-listen"]
            .map(str::to_owned)
            .to_vec();
        flags.push(format!("127.0.0.1:{port}"));
        flags.extend(["-hostname".into(), name.to_owned(), "-email".into(), format!("{name}@example.com")]);
        flags.extend(extra.iter().map(|s| (*s).to_owned()));
        if self.tls {
            let fingerprint = self.fingerprint().expect("a rendezvous with TLS states its fingerprint");
            flags.extend(["-registry-tls".to_owned(), "-registry-fingerprint".to_owned(), fingerprint]);
        }
        let socket = home.join("pilot.sock");
        let mut daemon =
            Daemon { make, name: name.to_owned(), home, socket, netns: self.netns(), flags, child: None };
        daemon.start();
        daemon
    }

    /// Mutual trust between two daemons: `a` asks, `b` approves, each with the CLI of its own make.
    pub fn trust(&self, a: &Daemon, b: &Daemon) {
        a.ctl(a.make, &["handshake", &b.name, "tests"]).data();
        wait_until("the request is pending", Duration::from_secs(70), || {
            b.ctl(b.make, &["pending"]).data()["pending"].as_array().is_some_and(|p| !p.is_empty())
        });
        b.ctl(b.make, &["approve", &a.node_id().to_string()]).data();
        wait_until("both sides trust", Duration::from_secs(70), || a.trusts(b) && b.trusts(a));
    }
}

fn netns_pid(holder: &Child) -> u32 {
    holder.id()
}

/// A command inside the namespace, with an environment of its own.
fn in_netns(pid: u32, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg("--target").arg(pid.to_string()).arg("--net").arg("--").arg(program).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("LANG", "C.UTF-8");
    command
}

fn terminate(child: &mut Child) {
    let _ = Command::new("kill").arg("-TERM").arg(child.id().to_string()).status();
    let deadline = Instant::now() + Duration::from_secs(15);
    while Instant::now() < deadline {
        if child.try_wait().is_ok_and(|s| s.is_some()) {
            return;
        }
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("the process ignored SIGTERM for 15 s");
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            eprintln!("laboratory kept: {}", self.dir.path().display());
        }
        if let Some(mut child) = self.rendezvous.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Daemon {
    /// (Re-)starts the daemon with its home and flags.
    pub fn start(&mut self) {
        let program = match self.make {
            Make::Reference => reference_binary("pilot-daemon"),
            Make::Ours => {
                // The one binary behaves as the daemon when it is started under that name.
                let link = self.home.join("pilot-daemon");
                if !link.exists() {
                    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pilotctl"), &link).expect("link");
                }
                link
            }
        };
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.home.join("daemon.log"))
            .expect("log file");
        let mut command = in_netns(self.netns, &program);
        command.args(&self.flags).arg("-socket").arg(&self.socket);
        command.arg("-identity").arg(self.home.join(".pilot/identity.json"));
        if self.make == Make::Reference {
            command.args(["-no-skillinject", "-telemetry-url", "", "-motd-feed-url", ""]);
        }
        command.env("HOME", &self.home).env("PILOT_NO_SKILLINJECT", "1");
        // The rendezvous' certificate is a root, for whoever asks the system.
        command.env("SSL_CERT_FILE", self.home.with_file_name("registry.db.cert.pem"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log file")).stderr(log);
        self.child = Some(command.spawn().expect("the daemon starts"));
        let name = format!("{:?} daemon {} answers", self.make, self.name);
        wait_until(&name, Duration::from_secs(20), || self.ctl(Make::Reference, &["info"]).code == 0);
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            terminate(&mut child);
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = in_netns(self.netns, program);
        command
            .env("HOME", &self.home)
            .env("PILOT_SOCKET", &self.socket)
            .env("PILOT_REGISTRY", "127.0.0.1:9000")
            .env("PILOT_BEACON", "127.0.0.1:9001")
            .env("PILOT_NO_SKILLINJECT", "1");
        command
    }

    /// Runs a CLI of that make against this daemon, with `--json`.
    pub fn ctl(&self, make: Make, args: &[&str]) -> Said {
        let mut all = args.to_vec();
        all.push("--json");
        self.ctl_raw(make, &all, b"")
    }

    /// Runs a CLI of that make with these arguments and that input.
    pub fn ctl_raw(&self, make: Make, args: &[&str], stdin: &[u8]) -> Said {
        let program = match make {
            Make::Ours => PathBuf::from(env!("CARGO_BIN_EXE_pilotctl")),
            Make::Reference => reference_binary("pilotctl"),
        };
        let mut command = self.command(&program);
        command.args(args);
        said(command, stdin)
    }

    /// Starts a CLI command and leaves it running.
    pub fn ctl_spawn(&self, make: Make, args: &[&str]) -> Child {
        let program = match make {
            Make::Ours => PathBuf::from(env!("CARGO_BIN_EXE_pilotctl")),
            Make::Reference => reference_binary("pilotctl"),
        };
        let mut command = self.command(&program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the CLI starts")
    }

    /// Runs a Python script with the reference SDK against this daemon.
    pub fn python(&self, script: &str, args: &[&str]) -> Said {
        let mut command = self.command(&venv().join("bin/python3"));
        command.arg("-c").arg(script).args(args);
        said(command, b"")
    }

    /// Starts such a script and leaves it running.
    pub fn python_spawn(&self, script: &str, args: &[&str]) -> Script {
        let mut command = self.command(&venv().join("bin/python3"));
        command.arg("-c").arg(script).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        let log = fs::File::create(self.home.join("script.log")).expect("log file");
        let mut child = command.stderr(log).spawn().expect("the script starts");
        let out = child.stdout.take().expect("stdout is piped");
        let (lines, said) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(out)).map_while(Result::ok) {
                if lines.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Script { child, said }
    }

    /// SIGKILL: the process ends without a word.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the daemon runs");
            child.wait().expect("the daemon ends");
        }
    }

    pub fn info(&self) -> Value {
        self.ctl(self.make, &["info"]).data()
    }

    pub fn node_id(&self) -> u64 {
        self.info()["node_id"].as_u64().expect("info has node_id")
    }

    pub fn address(&self) -> String {
        self.info()["address"].as_str().expect("info has address").to_owned()
    }

    pub fn trusts(&self, peer: &Daemon) -> bool {
        let id = peer.node_id();
        let trust = self.ctl(self.make, &["trust"]).data();
        trust["trusted"].as_array().is_some_and(|t| t.iter().any(|p| p["node_id"] == id))
    }
}

fn said(mut command: Command, stdin: &[u8]) -> Said {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts");
    let mut pipe = child.stdin.take().expect("stdin is piped");
    let input = stdin.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = pipe.write_all(&input);
    });
    let Output { status, stdout, stderr } = child.wait_with_output().expect("the command ends");
    let _ = writer.join();
    Said { code: status.code().unwrap_or(-1), stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
}

/// Polls a condition until it holds; fails with its name.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {limit:?} in vain: {what}");
        std::thread::park_timeout(Duration::from_millis(30));
    }
}

/// Bytes that repeat nowhere soon.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}
