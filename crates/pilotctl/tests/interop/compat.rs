//! The compat transport: daemons of both makes reach our beacon over WebSockets, and each other through it.

use crate::lab::{Lab, Make, wait_until};
use std::time::Duration;

#[test]
fn both_makes_work_together_without_udp_and_with_a_peer_that_has_it() {
    let lab = Lab::with_tls();
    let compat = ["-transport", "compat", "-compat-beacon", "wss://127.0.0.1:9000/v1/compat"];
    let a = lab.daemon(Make::Ours, "alpha", &compat);
    let b = lab.daemon(Make::Reference, "beta", &compat);
    let c = lab.daemon(Make::Reference, "gamma", &[]);
    assert_eq!(
        (a.info()["transport"].clone(), b.info()["transport"].clone()),
        ("compat".into(), "compat".into())
    );
    for (x, y) in [(&a, &b), (&b, &c), (&a, &c)] {
        lab.trust(x, y);
        for (from, to) in [(x, y), (y, x)] {
            wait_until("ping works", Duration::from_secs(40), || {
                from.ctl(from.make, &["ping", &to.name, "--count", "1", "--timeout", "10s"]).code == 0
            });
        }
    }
    b.ctl(b.make, &["send-message", "alpha", "--data", "from the reference"]).data();
    wait_until("the message has arrived", Duration::from_secs(20), || {
        a.ctl(a.make, &["inbox"]).text().contains("from the reference")
    });
}
