//! Restart, key rotation, and a rendezvous that goes away, across the two makes.

use crate::lab::{Lab, Make, wait_until};
use std::time::Duration;

#[test]
fn a_restarted_daemon_keeps_its_address_and_its_peers() {
    for restarted in [Make::Ours, Make::Reference] {
        let lab = Lab::new();
        let mut a = lab.daemon(restarted, "alpha", &[]);
        let b = lab.daemon(restarted.other(), "beta", &[]);
        lab.trust(&a, &b);
        b.ctl(b.make, &["ping", "alpha", "--count", "1"]).data();
        let address = a.address();
        a.stop();
        a.start();
        assert_eq!(a.address(), address, "the same identity gets the same address");
        assert!(a.trusts(&b), "trust survives the restart");
        for (from, to) in [(&a, &b), (&b, &a)] {
            wait_until("ping works after the restart", Duration::from_secs(40), || {
                from.ctl(from.make, &["ping", &to.name, "--count", "1", "--timeout", "10s"]).code == 0
            });
        }
    }
}

#[test]
fn a_rotated_key_drops_trust_and_a_new_handshake_restores_it() {
    for rotator in [Make::Ours, Make::Reference] {
        let lab = Lab::new();
        let mut a = lab.daemon(rotator, "alpha", &[]);
        let b = lab.daemon(rotator.other(), "beta", &[]);
        // The one that asks learns the key it trusts; the reference as the approver of a relayed request keeps a
        // record without a key, and so trusts whatever key comes first.
        lab.trust(&b, &a);
        a.ctl(a.make, &["ping", "beta", "--count", "1"]).data();
        b.ctl(b.make, &["ping", "alpha", "--count", "1"]).data();

        let before = a.info()["public_key"].clone();
        a.ctl(a.make, &["rotate-key"]).data();
        // The reference answers `info` from a copy up to 200 ms old.
        wait_until("the key changed", Duration::from_secs(5), || a.info()["public_key"] != before);
        let key = a.info()["public_key"].clone();
        // The other side learns of the new key at the next key exchange, which a restart forces.
        a.stop();
        a.start();
        assert_eq!(a.info()["public_key"], key, "the new key was saved");
        // Ours drops trust as soon as the tunnel shows the new key, the reference at the next handshake message.
        if rotator == Make::Ours {
            a.ctl(a.make, &["handshake", "beta", "my key is new"]).data();
        }
        wait_until("the peer drops trust in the changed key", Duration::from_secs(40), || {
            let _ = a.ctl(a.make, &["ping", "beta", "--count", "1", "--timeout", "5s"]);
            !b.trusts(&a)
        });
        // A new handshake restores it: the rotator's waiting request is approved, or the other side asks.
        if rotator == Make::Ours {
            b.ctl(b.make, &["approve", &a.node_id().to_string()]).data();
        } else {
            b.ctl(b.make, &["handshake", "alpha", "your key is new"]).data();
        }
        wait_until("trust is restored", Duration::from_secs(70), || a.trusts(&b) && b.trusts(&a));
        a.ctl(a.make, &["ping", "beta", "--count", "1"]).data();
    }
}

#[test]
fn tunnels_outlive_the_rendezvous_and_registration_returns_by_itself() {
    let mut lab = Lab::new();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Reference, "beta", &[]);
    lab.trust(&a, &b);
    a.ctl(Make::Ours, &["ping", "beta", "--count", "1"]).data();
    lab.stop_rendezvous();
    let id = b.node_id().to_string();
    a.ctl(Make::Ours, &["ping", &id, "--count", "1"]).data();
    lab.start_rendezvous();
    wait_until("names resolve again", Duration::from_secs(40), || {
        a.ctl(Make::Ours, &["lookup", &id]).code == 0
    });
}

#[test]
fn both_makes_register_and_trust_through_a_registry_behind_pinned_tls() {
    let lab = Lab::with_tls();
    let a = lab.daemon(Make::Ours, "alpha", &[]);
    let b = lab.daemon(Make::Reference, "beta", &[]);
    lab.trust(&a, &b);
    a.ctl(Make::Ours, &["ping", "beta", "--count", "1"]).data();
    b.ctl(Make::Reference, &["ping", "alpha", "--count", "1"]).data();
}
