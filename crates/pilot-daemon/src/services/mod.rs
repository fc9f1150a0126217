//! The built-in services on a node's streams (spec 06), and the client side of data exchange.

pub mod client;
mod stream;

pub use stream::{ByteStream, Ended};
