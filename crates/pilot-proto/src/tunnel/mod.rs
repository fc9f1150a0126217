//! Key exchange, sessions, replay windows (spec 02).
//!
//! - [`replay`]: which counters of a session were seen, per nonce prefix.
//! - [`session`]: one AES-GCM session: sealing, opening, and the faults that end it.
//! - [`exchange`]: when a key exchange is sent again, and when it is given up.
//! - [`pending`]: packets that wait for a session.
//! - [`limits`]: rate limits and bounded tables with expiry.
//! - [`noise`]: the Noise handshake of the session upgrade (docs/security/session-upgrade.md).
//! - [`upgrade`]: the sessions and the handshake of one peer.
//! - [`upgraded`]: one upgraded session: sealing, opening, its replay window and its bounds.

pub mod exchange;
pub mod limits;
pub mod noise;
pub mod pending;
pub mod replay;
pub mod session;
pub mod upgrade;
pub mod upgraded;
