//! Trust that was told to anybody is on the disk, whatever happens to the machine.
#![allow(clippy::unwrap_used)]

mod common;

use common::{config, node, rendezvous, within};
use pilot::{ApproveOutcome, Node, NodeConfig, StartError, TrustWait};
use pilot_disk::Disk;
use pilot_disk::simulate::{Fault, Image, Random, Recorder};
use pilot_rendezvous::Server;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const CUTS: usize = 500;

fn home(server: &Server, dir: &Path, disk: Disk) -> NodeConfig {
    NodeConfig { identity_path: Some(dir.join("identity.json")), disk, ..config(server) }
}

/// The trusted nodes of an image's `trust.json`, which must be whole if it is there.
fn trusted(image: &Image) -> BTreeSet<u64> {
    let Some(text) = image.files.get(Path::new("trust.json")) else { return BTreeSet::new() };
    let file: Value = serde_json::from_slice(text).expect("a whole file");
    let records = file["trusted"].as_array().into_iter().flatten();
    records.map(|record| record["node_id"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_that_was_reported_survives_every_power_cut() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let recorder = Arc::new(Recorder::new(dir.path()).unwrap());
    let ours = node(home(&server, dir.path(), Disk::watched(recorder.clone()))).await;
    let mut states = vec![(recorder.steps(), BTreeSet::new())];
    for round in 0..6 {
        let peer = node(config(&server)).await;
        let id = peer.node_id();
        let mut state = states.last().unwrap().1.clone();
        state.insert(u64::from(id));
        if round % 2 == 0 {
            peer.handshake(ours.node_id(), "please").await.unwrap();
            while ours.approve(id).await.unwrap() == ApproveOutcome::NothingPending {
                tokio::task::yield_now().await;
            }
        } else {
            within(ours.handshake(id, "please")).await.unwrap();
            while peer.approve(ours.node_id()).await.unwrap() == ApproveOutcome::NothingPending {
                tokio::task::yield_now().await;
            }
            assert_eq!(ours.wait_for_trust(id, common::LIMIT).await, TrustWait::Trusted);
        }
        states.push((recorder.steps(), state.clone()));
        if round % 3 == 0 {
            ours.revoke(id).await.unwrap();
            state.remove(&u64::from(id));
            states.push((recorder.steps(), state));
        }
    }
    let random = &mut Random(1);
    let mut met = BTreeSet::new();
    for _ in 0..CUTS {
        let at = random.below(recorder.steps() as u64 + 1) as usize;
        let found = trusted(&recorder.cut(at, random));
        let sure = states.iter().rposition(|(steps, _)| *steps <= at).unwrap_or(0);
        let next = &states[sure..states.len().min(sure + 2)];
        assert!(
            next.iter().any(|(_, state)| *state == found),
            "cut after {at} steps: {found:?}, not one of {next:?}"
        );
        met.insert(found);
    }
    assert!(met.len() > 5, "{met:?}");
    within(ours.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_trust_is_told_to_nobody_and_is_told_when_there_is_space() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let fault = Arc::new(Fault::default());
    let ours = node(home(&server, dir.path(), Disk::watched(fault.clone()))).await;
    let peer = node(config(&server)).await;
    peer.handshake(ours.node_id(), "please").await.unwrap();
    while ours.pending().await.is_empty() {
        within(ours.poll_handshakes()).await;
    }
    fault.set(Some(ErrorKind::StorageFull));
    let error = within(ours.approve(peer.node_id())).await.unwrap_err();
    assert!(error.contains("not saved and told to nobody yet: cannot write"), "{error}");
    assert!(error.contains("trust.json: the disk is full") && error.contains("free some space"), "{error}");
    let warnings = ours.status().await.warnings;
    assert!(warnings.iter().any(|w| w.contains("trust.json: the disk is full")), "{warnings:?}");
    assert!(!peer.is_trusted(ours.node_id()));
    assert_eq!(server.stats().trust_pairs, 0);
    fault.set(None);
    assert_eq!(peer.wait_for_trust(ours.node_id(), common::LIMIT).await, TrustWait::Trusted);
    let again = ours.wait_for_trust(peer.node_id(), Duration::from_secs(20)).await;
    assert_eq!(again, TrustWait::Trusted);
    let warnings = ours.status().await.warnings;
    assert!(!warnings.iter().any(|w| w.contains("trust.json")), "over: {warnings:?}");
    assert!(trusted(&Image::read(dir.path()).unwrap()).contains(&u64::from(peer.node_id())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_save_under_way_does_not_make_a_trusted_peer_a_stranger() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let fault = Arc::new(Fault::default());
    let ours = node(home(&server, dir.path(), Disk::watched(fault.clone()))).await;
    let peer = node(NodeConfig { trust_auto_approve: true, ..config(&server) }).await;
    let other = node(config(&server)).await;
    within(ours.handshake(peer.node_id(), "please")).await.unwrap();
    assert_eq!(ours.wait_for_trust(peer.node_id(), common::LIMIT).await, TrustWait::Trusted);
    // A request to somebody else, which stays unsaved.
    fault.set(Some(ErrorKind::StorageFull));
    within(ours.handshake(other.node_id(), "please")).await.unwrap_err();
    assert_eq!(ours.wait_for_trust(peer.node_id(), Duration::ZERO).await, TrustWait::Trusted);
    assert_eq!(ours.wait_for_trust(other.node_id(), Duration::ZERO).await, TrustWait::TimedOut);
    fault.set(None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_file_of_a_newer_program_is_refused_and_left_untouched() {
    let server = rendezvous().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trust.json");
    let text = "{\"trusted\":[],\"version\":2,\"more\":true}";
    std::fs::write(&path, text).unwrap();
    let error = within(Node::start(home(&server, dir.path(), Disk::new()))).await.unwrap_err();
    assert!(matches!(error, StartError::Config(_)));
    let error = error.to_string();
    assert!(error.contains("trust.json has format 2") && error.contains("use a newer program"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}
