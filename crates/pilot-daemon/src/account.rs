//! `account.json`: the email address given once is used by later starts (spec 08 section 1.9).

use pilot_disk::Disk;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn path(home: &Path) -> PathBuf {
    home.join("account.json")
}

/// The email to register with: the one `given`, else the remembered one. `None`: the node makes one from its key.
pub(crate) fn email(home: &Path, given: Option<String>) -> Result<Option<String>, String> {
    if let Some(email) = given.filter(|e| !e.is_empty()) {
        if !email.contains('@') {
            return Err("invalid email: email address must contain @".into());
        }
        return Ok(Some(email));
    }
    let path = path(home);
    match std::fs::read(&path) {
        Ok(text) => {
            let value: Value = serde_json::from_slice(&text)
                .map_err(|e| format!("{} is not valid JSON ({e}); mend or delete it", path.display()))?;
            let email = value.get("email").and_then(|e| e.as_str()).unwrap_or_default();
            Ok(Some(email.to_owned()).filter(|e| e.contains('@')))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Remembers `email`. A failure is logged and harms nothing else.
pub(crate) fn remember(disk: &Disk, home: &Path, email: &str) {
    let path = path(home);
    let text = format!("{:#}", serde_json::json!({ "email": email }));
    if std::fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return;
    }
    if let Err(error) = disk.replace(&path, text.as_bytes()) {
        tracing::warn!(%error, "the email address could not be remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn an_email_is_remembered_until_another_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("pilot");
        assert_eq!(email(&home, None), Ok(None));
        remember(&Disk::new(), &home, "a@example.com");
        let text = std::fs::read_to_string(path(&home)).unwrap();
        assert_eq!(text, "{\n  \"email\": \"a@example.com\"\n}");
        assert_eq!(std::fs::metadata(path(&home)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(email(&home, None), Ok(Some("a@example.com".into())));
        assert_eq!(email(&home, Some("b@example.com".into())), Ok(Some("b@example.com".into())));
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            email(dir.path(), Some("nobody".into())),
            Err("invalid email: email address must contain @".into())
        );
        std::fs::write(path(dir.path()), "{").unwrap();
        assert!(email(dir.path(), None).unwrap_err().contains("mend or delete it"));
    }
}
