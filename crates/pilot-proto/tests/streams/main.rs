//! Streams on a virtual clock.

mod link;
mod transfer;
