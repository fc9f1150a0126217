//! Names and passwords for proxies, in a file of their own that only its user can read.

use pilot_disk::Disk;
use pilot_proto::crypto::Secret;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Largest file read, bytes.
const MAX_LEN: u64 = 64 * 1024;

#[derive(Default, Serialize, Deserialize)]
struct Content {
    #[serde(default)]
    proxies: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    user: String,
    password: String,
}

/// What is kept, by `host:port`.
#[derive(Default)]
pub struct Credentials(Content);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.proxies.keys()).finish()
    }
}

impl Credentials {
    /// Reads the file; a missing one is empty.
    ///
    /// # Errors
    /// It cannot be read, is malformed, or others can read it, too.
    pub fn load(path: &Path) -> Result<Credentials, String> {
        let fail = |why: &dyn std::fmt::Display| format!("proxy credentials {}: {why}", path.display());
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Credentials::default()),
            Err(e) => return Err(fail(&e)),
        };
        let mode = file.metadata().map_err(|e| fail(&e))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(fail(&format_args!(
                "others can read it (mode {mode:o}); chmod 600 it, and change the password"
            )));
        }
        let mut text = Vec::new();
        file.take(MAX_LEN + 1).read_to_end(&mut text).map_err(|e| fail(&e))?;
        if text.len() as u64 > MAX_LEN {
            return Err(fail(&format_args!("larger than {MAX_LEN} bytes")));
        }
        // The cause without the text, which holds passwords.
        serde_json::from_slice(&text)
            .map(Credentials)
            .map_err(|e| fail(&format_args!("malformed at line {}; move it away", e.line())))
    }

    /// Writes the file, durably and for this user alone.
    ///
    /// # Errors
    /// The disk does not take it.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(&self.0).map_err(|e| e.to_string())?;
        Disk::new().replace(path, text.as_bytes()).map_err(|e| e.to_string())
    }

    /// Name and password for a proxy.
    pub fn get(&self, proxy: &str) -> Option<(String, Secret)> {
        self.0.proxies.get(proxy).map(|e| (e.user.clone(), Secret::from(&*e.password)))
    }

    /// Proxies and names.
    pub fn list(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.proxies.iter().map(|(proxy, e)| (proxy.as_str(), e.user.as_str()))
    }

    /// Keeps name and password for a proxy.
    pub fn set(&mut self, proxy: &str, user: &str, password: &Secret) {
        let entry = Entry { user: user.to_owned(), password: password.expose().to_owned() };
        self.0.proxies.insert(proxy.to_owned(), entry);
    }

    /// Forgets those of a proxy; false: there were none.
    pub fn remove(&mut self, proxy: &str) -> bool {
        self.0.proxies.remove(proxy).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn credentials_are_kept_for_their_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy-credentials.json");
        let mut kept = Credentials::load(&path).unwrap();
        kept.set("proxy:3128", "agent", &Secret::from("s3cret"));
        kept.save(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let mut kept = Credentials::load(&path).unwrap();
        assert_eq!(
            kept.get("proxy:3128").map(|(u, p)| (u, p.expose().to_owned())),
            Some(("agent".into(), "s3cret".into()))
        );
        assert!(!format!("{kept:?}").contains("s3cret"));
        assert!(kept.remove("proxy:3128") && !kept.remove("proxy:3128") && kept.list().next().is_none());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Credentials::load(&path).unwrap_err().contains("others can read it (mode 644); chmod 600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "{\"proxies\": {\"a\": \"s3cret\"}}").unwrap();
        let error = Credentials::load(&path).unwrap_err();
        assert!(error.contains("malformed") && !error.contains("s3cret"), "{error}");
    }
}
