//! The environment variables Pilot reads, captured once (spec 08 section 1.8).

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A snapshot of the environment. Empty variables count as unset.
#[derive(Clone, Default)]
pub struct Env {
    vars: BTreeMap<String, String>,
}

impl std::fmt::Debug for Env {
    /// Names; values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.vars.keys()).finish()
    }
}

impl Env {
    /// The environment of this process; variables that are not UTF-8 are left out.
    pub fn from_process() -> Env {
        Env::from_pairs(
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
    }

    /// An environment of these variables.
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Env {
        Env { vars: pairs.into_iter().filter(|(_, v)| !v.is_empty()).collect() }
    }

    /// A variable that is set to something.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str)
    }

    /// `$PILOT_HOME/.pilot`, else `$HOME/.pilot`, else `.pilot` in the working directory.
    pub fn pilot_home(&self) -> PathBuf {
        let base = self.get("PILOT_HOME").or_else(|| self.get("HOME")).unwrap_or(".");
        PathBuf::from(base).join(".pilot")
    }

    /// Where names and passwords for proxies are kept.
    pub fn proxy_credentials(&self) -> PathBuf {
        self.pilot_home().join("proxy-credentials.json")
    }

    /// `$HOME/.pilot/rendezvous`, whatever `PILOT_HOME` says: the local rendezvous is shared by all homes of a user.
    pub fn rendezvous_dir(&self) -> PathBuf {
        match self.get("HOME") {
            Some(home) => PathBuf::from(home).join(".pilot/rendezvous"),
            None => self.pilot_home().join("rendezvous"),
        }
    }

    /// The socket when nothing names one: `$XDG_RUNTIME_DIR/pilot.sock`, else `/tmp/pilot.sock` (spec 07 section 1); in the
    /// home of Pilot if that directory does not exist.
    pub fn default_socket(&self) -> PathBuf {
        let dir = match self.get("XDG_RUNTIME_DIR") {
            Some(dir) if cfg!(target_os = "linux") => PathBuf::from(dir),
            _ => PathBuf::from("/tmp"),
        };
        match dir.is_dir() {
            true => dir.join("pilot.sock"),
            false => self.pilot_home().join("pilot.sock"),
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn without_a_runtime_directory_the_socket_is_at_home() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("runtime");
        let env = Env::from_pairs([
            ("XDG_RUNTIME_DIR".into(), runtime.display().to_string()),
            ("HOME".into(), dir.path().display().to_string()),
        ]);
        assert_eq!(env.default_socket(), dir.path().join(".pilot/pilot.sock"));
        std::fs::create_dir(&runtime).unwrap();
        assert_eq!(env.default_socket(), runtime.join("pilot.sock"));
    }
}
