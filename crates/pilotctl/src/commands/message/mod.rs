//! Messages through the data exchange.

pub mod reply;
