//! `config.json`: read with care, written atomically (spec 08 sections 1.9 and 1.10).

use super::keys::{self, Key, Kind};
use pilot_disk::{Disk, DiskError};
use serde_json::{Map, Value};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Largest file read, bytes.
const MAX_LEN: u64 = 1 << 20;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It exists but cannot be read.
    #[error("config file {path}: {error}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Cause.
        error: io::Error,
    },
    /// It is not a JSON object.
    #[error("config file {path} is corrupt: {reason}", path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// A known key has a value of the wrong type or form.
    #[error("config file {path}: {reason}", path = .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// Which key and what it must be.
        reason: String,
    },
}

/// A configuration file in memory. Keys it does not know are kept.
#[derive(Clone)]
pub struct ConfigFile {
    path: PathBuf,
    values: Map<String, Value>,
}

impl std::fmt::Debug for ConfigFile {
    /// Path and keys; values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<_> = self.values.keys().collect();
        f.debug_struct("ConfigFile").field("path", &self.path).field("keys", &keys).finish()
    }
}

impl ConfigFile {
    /// Reads the file; a missing one is empty. Every known key is checked.
    pub fn load(path: &Path) -> Result<ConfigFile, FileError> {
        let unreadable = |error| FileError::Unreadable { path: path.to_owned(), error };
        let mut text = Vec::new();
        match fs::File::open(path) {
            // One byte more than allowed, so that a longer file shows; its length alone says nothing of a pipe.
            Ok(file) => file.take(MAX_LEN + 1).read_to_end(&mut text).map_err(unreadable)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Ok(ConfigFile { path: path.to_owned(), values: Map::new() });
            }
            Err(e) => return Err(unreadable(e)),
        };
        ConfigFile::parse(path, &text)
    }

    /// The file's content; `path` is where it is from.
    pub fn parse(path: &Path, text: &[u8]) -> Result<ConfigFile, FileError> {
        let corrupt = |reason: String| FileError::Corrupt { path: path.to_owned(), reason };
        if text.len() as u64 > MAX_LEN {
            return Err(corrupt(format!("larger than {MAX_LEN} bytes")));
        }
        let mut file = ConfigFile { path: path.to_owned(), values: Map::new() };
        let values: Value = serde_json::from_slice(text).map_err(|e| corrupt(e.to_string()))?;
        let Value::Object(values) = values else {
            return Err(corrupt("not a JSON object".to_owned()));
        };
        for (name, value) in values {
            // Both spellings of a key are one key; the file keeps the one with `_`.
            let name = keys::find(&name).map_or(name, |key| key.name.to_owned());
            file.values.insert(name, value);
        }
        for (name, value) in &file.values {
            if let Some(key) = keys::find(name) {
                check(key, value).map_err(|reason| FileError::Value { path: path.to_owned(), reason })?;
            }
        }
        Ok(file)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All values.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// Keys nobody knows.
    pub fn unknown_keys(&self) -> Vec<&str> {
        self.values.keys().filter(|k| keys::find(k).is_none()).map(String::as_str).collect()
    }

    /// A key as text, whatever its type; empty text counts as unset.
    pub fn string(&self, name: &str) -> Option<String> {
        match self.values.get(name)? {
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => Some(text.clone()),
            Value::Bool(on) => Some(on.to_string()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// Sets a value.
    pub fn set(&mut self, name: &str, value: Value) {
        self.values.insert(name.to_owned(), value);
    }

    /// Removes a value.
    pub fn remove(&mut self, name: &str) {
        self.values.remove(name);
    }

    /// Writes the file, durably.
    ///
    /// # Errors
    /// The disk does not take it; the text names the file, the cause and what to do.
    pub fn save(&self) -> Result<(), DiskError> {
        // Values came from JSON and go back to it.
        let text = format!("{:#}\n", Value::Object(self.values.clone()));
        Disk::new().replace(&self.path, text.as_bytes())
    }
}

fn check(key: &Key, value: &Value) -> Result<(), String> {
    let text = match (key.kind, value) {
        (Kind::Bool, Value::Bool(_)) => return Ok(()),
        (Kind::Int, Value::Number(number)) if number.as_u64().is_some() => return Ok(()),
        // An empty text is how other tools say "not set".
        (_, Value::String(text)) if text.is_empty() => return Ok(()),
        (_, Value::String(text)) => text.clone(),
        (_, Value::Null) => return Ok(()),
        (_, other) => other.to_string(),
    };
    match (key.kind, value) {
        (Kind::Text | Kind::Duration | Kind::Hostname | Kind::Proxy, v) if !v.is_string() => {
            Err(format!("{} must be a string, got {text}", key.name))
        }
        // A hostname the registry would refuse is no reason not to start; the daemon reports the refusal.
        (Kind::Hostname, _) => Ok(()),
        _ => key.parse(&text).map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_missing_file_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let config = ConfigFile::load(&dir.path().join("none.json")).unwrap();
        assert!(config.values().is_empty());
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_whatever_it_claims_to_be() {
        // A device has length 0 and no end.
        let error = ConfigFile::load(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().ends_with("is corrupt: larger than 1048576 bytes"), "{error}");
    }

    #[test]
    fn a_corrupt_file_is_an_error_that_names_it() {
        let (_dir, path) = file("{\"registry\": ");
        let error = ConfigFile::load(&path).unwrap_err();
        assert!(matches!(error, FileError::Corrupt { .. }), "{error}");
        assert!(error.to_string().contains("config.json is corrupt"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_type_names_its_key() {
        let (_dir, path) = file("{\"public\": \"yes\"}");
        let error = ConfigFile::load(&path).unwrap_err();
        assert!(matches!(error, FileError::Value { .. }), "{error}");
        assert!(error.to_string().ends_with("public must be true or false"), "{error}");
    }

    #[test]
    fn both_spellings_are_one_key_and_unknown_ones_are_kept() {
        let (_dir, path) = file("{\"log-level\": \"debug\", \"colour\": 1}");
        let config = ConfigFile::load(&path).unwrap();
        assert_eq!(config.string("log_level").as_deref(), Some("debug"));
        assert_eq!(config.unknown_keys(), ["colour"]);
        config.save().unwrap();
        assert_eq!(ConfigFile::load(&path).unwrap().values()["colour"], json!(1));
    }

    #[test]
    fn saving_replaces_the_file_and_keeps_it_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/config.json");
        let mut config = ConfigFile::load(&path).unwrap();
        config.set("registry", json!("127.0.0.1:9000"));
        config.save().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\n  \"registry\": \"127.0.0.1:9000\"\n}\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }
}
