//! The binary formats of the protocol. Parsing never panics and never allocates by an unchecked length.

pub mod addr;
pub mod beacon;
pub mod capability;
pub mod compat;
pub mod discover;
pub mod frame;
pub mod http;
pub mod packet;
pub mod websocket;
