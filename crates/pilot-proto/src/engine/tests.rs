//! Where secrets come from and where they must not go.

use super::*;

fn config(secret: u8) -> Config {
    Config {
        tunnel_secret: [secret; 32],
        rng_seed: [secret ^ 0xFF; 32],
        encrypt: true,
        session_upgrade: true,
        allow_anonymous: Vec::new(),
        public: false,
        strict_dataplane_trust: false,
        relay_only: false,
        loopback_payload: 1152,
        idle_timeout: Duration::from_secs(120),
        user_timeout: Duration::from_secs(900),
        keepalive: Duration::from_secs(60),
        max_conns_per_port: 1,
        max_conns_total: 1,
        syn_rate_limit: 0,
        max_segments: 1,
    }
}

fn engine(secret: u8) -> Engine {
    let identity = Identity::from_seed([1; 32]).expect("every seed is a key");
    Engine::new(config(secret), Arc::new(identity), 1, Instant::now())
}

#[test]
fn secrets_of_the_engine_come_from_a_cryptographic_generator() {
    fn cryptographic<R: rand_core::CryptoRng>(rng: &mut R) -> [u8; 16] {
        let mut out = [0; 16];
        rng.fill_bytes(&mut out);
        out
    }
    // Compiles only if the generator of nonce prefixes, ephemeral keys and sequence numbers is a cryptographic one; and it
    // gives what its seed says, so that its seed is all that must be secret.
    let (a, b, other) = (
        cryptographic(&mut engine(7).rng),
        cryptographic(&mut engine(7).rng),
        cryptographic(&mut engine(8).rng),
    );
    assert_eq!(a, b);
    assert_ne!(a, other);
}

#[test]
fn printed_settings_and_engines_hold_no_secret() {
    // Arrays print as lists of decimal numbers.
    for printed in [format!("{:?}", config(211)), format!("{:?}", engine(211))] {
        assert!(!printed.contains("211, 211"), "tunnel_secret is printed: {printed}");
        assert!(!printed.contains("44, 44"), "rng_seed is printed: {printed}");
    }
}
