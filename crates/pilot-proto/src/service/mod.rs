//! Formats and state machines of the built-in services (spec 06).
//!
//! - [`echo`]: the echo service and its trace probe (port 7).
//! - [`frame`]: the frames of data exchange (port 1001), decoded piece by piece.
//! - [`message`]: what a frame carries: messages, files, traces, tags; the texts of acknowledgements.
//! - [`send`]: client: one message and its acknowledgement, with the fall-back for old receivers.
//! - [`file_sender`], [`file_receiver`]: both ends of a resumable transfer ([`filestream`] is its codec).
//! - [`duplicates`]: the memory that keeps a message from being stored twice.
//! - [`names`]: names of stored files.

pub mod duplicates;
pub mod echo;
pub mod file_receiver;
pub mod file_sender;
pub mod filestream;
pub mod frame;
pub mod message;
pub mod names;
pub mod send;
#[cfg(test)]
mod tests;

use aws_lc_rs::digest;

/// Well-known ports (spec 06 section 1).
pub mod port {
    /// Echo.
    pub const ECHO: u16 = 7;
    /// Trust handshake.
    pub const HANDSHAKE: u16 = 444;
    /// Convention of `connect`, `send`, `recv`; no service.
    pub const STDIO: u16 = 1000;
    /// Messages and files.
    pub const DATA_EXCHANGE: u16 = 1001;
    /// Publish and subscribe.
    pub const EVENTS: u16 = 1002;
}

/// A running SHA-256, for files that do not fit in memory.
#[derive(Clone)]
pub struct Sha256(digest::Context);

impl Sha256 {
    /// Of nothing yet.
    pub fn new() -> Sha256 {
        Sha256(digest::Context::new(&digest::SHA256))
    }

    /// Takes in more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest.
    pub fn finish(self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.0.finish().as_ref());
        out
    }
}

impl Default for Sha256 {
    fn default() -> Sha256 {
        Sha256::new()
    }
}

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sha256(..)")
    }
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The `N` bytes at `at`, if there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}
