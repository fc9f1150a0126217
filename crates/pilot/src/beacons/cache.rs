//! `beacons.json` beside the identity: the beacons the registry named last, for a start without it (spec 04 section 7).
//!
//! The reference reads and writes the same file; ours has two more fields, and says with them which registry it is of.

use crate::config::split_host_port;
use crate::{peers, unix_now};
use pilot_disk::Disk;
use pilot_proto::path::beacons::MAX_KNOWN;
use pilot_proto::trust::rfc3339;
use serde_json::{Value, json};
use std::path::PathBuf;

/// A file that does not say of which registry it is counts for this long (seconds).
const FRESH: u64 = 3600;

/// What the registry said of beacons.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Saved {
    /// Its own one, `host:port`.
    pub(crate) own: Option<String>,
    /// Its list, filtered and sorted.
    pub(crate) listed: Vec<String>,
}

/// The file's place.
pub(crate) fn path(identity_path: Option<&std::path::Path>) -> Option<PathBuf> {
    identity_path.map(|path| path.with_file_name("beacons.json"))
}

/// Reads it; whatever is wrong with it, it is a cache: nothing is known then.
pub(crate) fn load(path: &std::path::Path, registry: &str) -> Saved {
    match peers::read(path) {
        Ok(Some(text)) => parse(&text, registry, unix_now()).unwrap_or_default(),
        Ok(None) | Err(_) => Saved::default(),
    }
}

fn parse(text: &str, registry: &str, now: u64) -> Option<Saved> {
    let file: Value = serde_json::from_str(text).ok()?;
    match file.get("registry") {
        Some(named) if *named == registry => {}
        Some(_) => return None,
        None => {
            let saved = file["saved_at"].as_str().and_then(rfc3339::parse)?;
            if now.saturating_sub(saved) > FRESH {
                return None;
            }
        }
    }
    let good = |text: &&str| split_host_port(text).is_ok_and(|(_, port)| port != 0);
    let listed = file["addrs"].as_array().into_iter().flatten().filter_map(Value::as_str).filter(good);
    Some(Saved {
        own: file["registry_beacon"].as_str().filter(good).map(str::to_owned),
        listed: listed.take(MAX_KNOWN).map(str::to_owned).collect(),
    })
}

fn to_text(saved: &Saved, registry: &str, now: u64) -> String {
    let mut file = json!({"saved_at": rfc3339::format(now), "addrs": saved.listed, "registry": registry});
    if let Some(own) = &saved.own {
        file["registry_beacon"] = own.as_str().into();
    }
    file.to_string()
}

/// Writes it; a failure is the disk's to report.
pub(crate) async fn save(disk: &Disk, path: PathBuf, saved: &Saved, registry: &str) {
    let (text, disk) = (to_text(saved, registry, unix_now()), disk.clone());
    let written = tokio::task::spawn_blocking(move || disk.replace(&path, text.as_bytes()));
    if let Ok(Err(error)) = written.await {
        tracing::debug!(%error, "beacons.json not written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_217_651;

    #[test]
    fn what_is_written_is_read_for_the_same_registry_at_any_age() {
        let saved =
            Saved { own: Some("r.example:9001".into()), listed: vec!["192.0.2.1:9001".into(), "b:1".into()] };
        let text = to_text(&saved, "r.example:9000", NOW);
        assert!(text.contains(r#""saved_at":"2026-11-20T23:34:11Z""#), "{text}");
        assert_eq!(parse(&text, "r.example:9000", NOW + 1_000_000), Some(saved));
        assert_eq!(parse(&text, "other.example:9000", NOW), None);
    }

    #[test]
    fn a_file_of_the_reference_counts_for_an_hour() {
        let text = r#"{"saved_at":"2026-11-20T23:34:11Z","addrs":["192.0.2.1:9001","nonsense","h:0"]}"#;
        let listed = vec!["192.0.2.1:9001".to_owned()];
        assert_eq!(parse(text, "r:1", NOW + 3600), Some(Saved { own: None, listed }));
        assert_eq!(parse(text, "r:1", NOW + 3601), None);
    }

    #[test]
    fn nonsense_is_nothing() {
        for text in ["", "[]", "{}", r#"{"registry":"r:1"}"#, r#"{"registry":"r:1","addrs":7}"#] {
            assert_eq!(parse(text, "r:1", NOW).unwrap_or_default(), Saved::default(), "{text}");
        }
    }
}
