//! Where a rendezvous keeps its things, whether it runs, and the one of this machine that is started on demand.
//!
//! Everything lies beside the store: `rendezvous.db`, `.pid`, `.json` (the addresses in use), `.counters.json` and `.log`. The store of
//! the local rendezvous is in `$HOME/.pilot/rendezvous`, shared by all homes of the user.

use super::detach::Launch;
use super::lock::PidLock;
use super::make_private_dir;
use crate::error::CliError;
use pilot_daemon::config::Env;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a rendezvous may take to open its store and bind.
pub const READY: Duration = Duration::from_secs(15);

/// The files of one rendezvous.
#[derive(Debug, Clone)]
pub struct Place {
    /// The store.
    pub store: PathBuf,
}

impl Place {
    /// The one shared by all homes of this user.
    pub fn local(env: &Env) -> Place {
        Place { store: env.rendezvous_dir().join("rendezvous.db") }
    }

    /// The directory all files are in.
    pub fn dir(&self) -> &Path {
        match self.store.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        }
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// The pid file.
    pub fn pid_file(&self) -> PathBuf {
        self.beside("rendezvous.pid")
    }

    /// The log.
    pub fn log(&self) -> PathBuf {
        self.beside("rendezvous.log")
    }

    fn state_file(&self) -> PathBuf {
        self.beside("rendezvous.json")
    }

    /// The running process.
    pub fn running(&self) -> Result<Option<u32>, CliError> {
        let path = self.pid_file();
        PidLock::holder(&path).map_err(|e| CliError::io(format!("read {}", path.display()), &e))
    }

    /// The addresses it was last ready on.
    pub fn state(&self) -> Option<State> {
        let value: Value = serde_json::from_slice(&fs::read(self.state_file()).ok()?).ok()?;
        State::from_json(&value)
    }

    /// What it last counted.
    pub fn counters(&self) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.beside("rendezvous.counters.json")).ok()?).ok()
    }

    /// Records the addresses.
    pub fn record(&self, state: &State) -> Result<(), CliError> {
        self.replace("rendezvous.json", &state.to_json())
    }

    /// Records the counters.
    pub fn record_counters(&self, counters: &Value) -> Result<(), CliError> {
        self.replace("rendezvous.counters.json", counters)
    }

    fn replace(&self, name: &str, value: &Value) -> Result<(), CliError> {
        let path = self.beside(name);
        let temporary = self.beside(&format!(".{name}"));
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| writeln!(file, "{value:#}"))
            .and_then(|()| fs::rename(&temporary, &path));
        written.map_err(|e| CliError::io(format!("write {}", path.display()), &e))
    }
}

/// Where a rendezvous listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// TCP.
    pub registry: SocketAddr,
    /// UDP.
    pub beacon: SocketAddr,
    /// The beacon's second port, UDP.
    pub probe: Option<SocketAddr>,
    /// TCP, always with TLS.
    pub tls: Option<SocketAddr>,
    /// Whether `registry` is served with TLS, too.
    pub registry_tls: bool,
    /// SHA-256 of its certificate; `None`: plain TCP.
    pub fingerprint: Option<String>,
}

impl State {
    /// As recorded, printed and sent to the parent.
    pub fn to_json(&self) -> Value {
        let mut value =
            json!({"registry_addr": self.registry.to_string(), "beacon_addr": self.beacon.to_string()});
        if let Some(probe) = &self.probe {
            value["beacon_probe_addr"] = json!(probe.to_string());
        }
        if let Some(tls) = &self.tls {
            value["tls_addr"] = json!(tls.to_string());
            value["registry_tls"] = json!(self.registry_tls);
        }
        if let Some(fingerprint) = &self.fingerprint {
            value["tls_fingerprint"] = json!(fingerprint);
        }
        value
    }

    /// The reverse.
    pub fn from_json(value: &Value) -> Option<State> {
        let addr = |key: &str| value[key].as_str()?.parse().ok();
        let fingerprint = value["tls_fingerprint"].as_str().map(str::to_owned);
        Some(State {
            registry: addr("registry_addr")?,
            beacon: addr("beacon_addr")?,
            probe: addr("beacon_probe_addr"),
            tls: addr("tls_addr"),
            registry_tls: value["registry_tls"].as_bool().unwrap_or(fingerprint.is_some()),
            fingerprint,
        })
    }

    /// The address a process of this machine reaches the registry at.
    pub fn registry_here(&self) -> SocketAddr {
        reachable(self.registry)
    }

    /// What pins the certificate at `registry`; `None`: plain TCP.
    pub fn registry_fingerprint(&self) -> Option<&String> {
        self.fingerprint.as_ref().filter(|_| self.registry_tls)
    }

    /// The address a process of this machine reaches the beacon at.
    pub fn beacon_here(&self) -> SocketAddr {
        reachable(self.beacon)
    }
}

/// An address bound to "every interface", as seen from this machine; `[::]` serves IPv4, too.
fn reachable(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, addr.port())
}

/// The local rendezvous, and whether this call started it.
#[derive(Debug, Clone)]
pub struct Local {
    /// Where it listens.
    pub state: State,
    /// Its process.
    pub pid: u32,
    /// It was not there before.
    pub started: bool,
}

/// Finds the local rendezvous, or starts it on loopback: on the ports it had before, else 9000 and 9001, else free
/// ones. Of several callers at once one starts it, the others find it.
pub fn ensure_local(env: &Env) -> Result<Local, CliError> {
    let place = Place::local(env);
    make_private_dir(place.dir())?;
    let guard = place.beside("start.lock");
    let _guard = PidLock::wait(&guard).map_err(|e| CliError::io(format!("lock {}", guard.display()), &e))?;
    if let (Some(pid), Some(state)) = (place.running()?, place.state()) {
        return Ok(Local { state, pid, started: false });
    }
    let wanted = place.state().map_or_else(
        || {
            let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            (here(pilot_rendezvous::REGISTRY_PORT), here(pilot_rendezvous::BEACON_PORT))
        },
        |before| (before.registry_here(), before.beacon_here()),
    );
    let launch = Launch {
        name: "pilot-rendezvous",
        args: vec![
            format!("--registry-addr={}", wanted.0),
            format!("--beacon-addr={}", wanted.1),
            "--free-ports".to_owned(),
            format!("--store={}", place.store.display()),
        ],
        env: Vec::new(),
        log: &place.log(),
        wait: READY,
    };
    let (pid, said) = launch.start()?;
    let state = State::from_json(&said)
        .ok_or_else(|| CliError::internal(format!("the rendezvous said something else: {said}")))?;
    Ok(Local { state, pid, started: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recorded_addresses_come_back_and_any_interface_is_reached_over_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place { store: dir.path().join("rendezvous.db") };
        assert_eq!(place.state(), None);
        let state = State {
            registry: "0.0.0.0:9000".parse().unwrap(),
            beacon: "[::]:9001".parse().unwrap(),
            probe: Some("[::]:9002".parse().unwrap()),
            tls: Some("0.0.0.0:443".parse().unwrap()),
            registry_tls: false,
            fingerprint: Some("ab".repeat(32)),
        };
        place.record(&state).unwrap();
        assert_eq!(place.state(), Some(state.clone()));
        assert_eq!(state.registry_here().to_string(), "127.0.0.1:9000");
        assert_eq!(state.beacon_here().to_string(), "127.0.0.1:9001");
    }
}
