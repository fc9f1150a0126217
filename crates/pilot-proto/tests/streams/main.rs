//! Streams on a virtual clock.

mod hostile;
mod link;
mod model;
mod own;
mod reference;
mod script;
mod transfer;
mod vectors;
