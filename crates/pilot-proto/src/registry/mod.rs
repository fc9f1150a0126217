//! What a node signs and says to its registry (spec 05).

pub mod challenge;
pub mod fresh;
pub mod record;
