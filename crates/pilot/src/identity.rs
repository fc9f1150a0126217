//! The identity file (spec 02 section 16).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pilot_disk::{Disk, DiskError};
use pilot_proto::crypto::Identity;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use zeroize::{Zeroize as _, Zeroizing};

/// Most bytes an identity file may have; a real one has about 200.
pub(crate) const MAX_FILE: u64 = 64 * 1024;

const CORRUPTED: &str = "identity file corrupted: public key does not match private key";

#[derive(Serialize, Deserialize)]
struct File {
    private_key: String,
    public_key: String,
}

impl Drop for File {
    fn drop(&mut self) {
        self.private_key.zeroize();
    }
}

/// A new identity from the operating system's generator.
pub(crate) fn generate() -> Result<Identity, String> {
    let mut seed = Zeroizing::new([0u8; 32]);
    crate::random(&mut seed[..])?;
    Identity::from_seed(*seed).ok_or_else(|| "cannot make a key pair".to_owned())
}

/// Loads the identity of `path`; a missing file is made. Errors say what to do.
pub(crate) fn load_or_create(disk: &Disk, path: &Path) -> Result<Identity, String> {
    match load(path)? {
        Some(identity) => Ok(identity),
        None => {
            let identity = generate()?;
            save(disk, path, &identity).map_err(|e| format!("identity file: {e}"))?;
            Ok(identity)
        }
    }
}

fn load(path: &Path) -> Result<Option<Identity>, String> {
    let unreadable = |e: io::Error| format!("identity file {} cannot be read: {e}", path.display());
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "identity file has loose permissions (mode {mode:o}); chmod 600 {} and retry",
            path.display()
        ));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE).read_to_string(&mut text).map_err(unreadable)?;
    parse(&text).map(Some)
}

pub(crate) fn parse(text: &str) -> Result<Identity, String> {
    let file: File = serde_json::from_str(text)
        .map_err(|e| format!("identity file corrupted: {e}; restore it from a backup or remove it"))?;
    let private = Zeroizing::new(STANDARD.decode(file.private_key.as_bytes()).unwrap_or_default());
    let public = STANDARD.decode(file.public_key.as_bytes()).unwrap_or_default();
    let (Ok(private), Ok(public)) = (<&[u8; 64]>::try_from(&private[..]), <&[u8; 32]>::try_from(&public[..]))
    else {
        return Err(
            "identity file corrupted: the keys do not have 64 and 32 bytes; restore it from a backup \
                    or remove it"
                .into(),
        );
    };
    let (seed, stored) = private.split_at(32);
    let mut copy = Zeroizing::new([0u8; 32]);
    copy.copy_from_slice(seed);
    let identity = Identity::from_seed(*copy).ok_or(CORRUPTED)?;
    if stored != public || identity.public_key() != public {
        return Err(CORRUPTED.into());
    }
    Ok(identity)
}

/// The file's content.
pub(crate) fn text(identity: &Identity) -> Zeroizing<Vec<u8>> {
    let mut private = Zeroizing::new([0u8; 64]);
    private[..32].copy_from_slice(identity.seed());
    private[32..].copy_from_slice(identity.public_key());
    let file = File { private_key: STANDARD.encode(&private[..]), public_key: identity.public_key_base64() };
    // Two texts always have a JSON form.
    Zeroizing::new(serde_json::to_vec_pretty(&file).unwrap_or_default())
}

/// Writes the identity; durable when this returns.
pub(crate) fn save(disk: &Disk, path: &Path, identity: &Identity) -> Result<(), DiskError> {
    disk.replace(path, &text(identity))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_is_made_private_and_loads_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/identity.json");
        let made = load_or_create(&Disk::new(), &path).unwrap();
        let again = load_or_create(&Disk::new(), &path).unwrap();
        assert_eq!(made.public_key(), again.public_key());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("{\n  \"private_key\": \"") && text.ends_with("\"\n}"), "{text}");
        assert!(!path.with_file_name(".identity.json.tmp").exists());
    }

    #[test]
    fn a_file_of_the_reference_is_read_and_written_alike() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../pilot-proto/tests/vectors/tunnel.json")).unwrap();
        for node in ["a", "b"] {
            let golden = &vectors["nodes"][node]["identity_json"];
            let identity = parse(&golden.to_string()).unwrap();
            assert_eq!(identity.public_key_base64(), golden["public_key"]);
            let written: serde_json::Value = serde_json::from_slice(&text(&identity)).unwrap();
            assert_eq!(written, *golden);
        }
    }

    #[test]
    fn loose_permissions_are_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id.json");
        load_or_create(&Disk::new(), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(
            load_or_create(&Disk::new(), &path).unwrap_err(),
            format!("identity file has loose permissions (mode 644); chmod 600 {} and retry", path.display())
        );
    }

    #[test]
    fn a_key_that_does_not_match_is_corrupted() {
        let (a, b) = (generate().unwrap(), generate().unwrap());
        let text = |seed: &[u8; 32], inner: &[u8; 32], public: &[u8; 32]| {
            let private = [&seed[..], &inner[..]].concat();
            format!(
                r#"{{"private_key":"{}","public_key":"{}"}}"#,
                STANDARD.encode(private),
                STANDARD.encode(public)
            )
        };
        assert!(parse(&text(a.seed(), a.public_key(), a.public_key())).is_ok());
        for (seed, inner, public) in [
            (a.seed(), a.public_key(), b.public_key()),
            (a.seed(), b.public_key(), b.public_key()),
            (a.seed(), b.public_key(), a.public_key()),
        ] {
            assert_eq!(parse(&text(seed, inner, public)).unwrap_err(), CORRUPTED);
        }
        assert!(parse("{").unwrap_err().starts_with("identity file corrupted: "));
        assert!(
            parse(r#"{"private_key":"AA==","public_key":"AA=="}"#)
                .unwrap_err()
                .contains("do not have 64 and 32 bytes")
        );
    }

    #[test]
    fn a_dangling_symbolic_link_is_followed_when_saving() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("id.json"), dir.path().join("real/id.json"));
        std::os::unix::fs::symlink("real/id.json", &link).unwrap();
        let made = load_or_create(&Disk::new(), &link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(load(&target).unwrap().unwrap().public_key(), made.public_key());
    }
}
