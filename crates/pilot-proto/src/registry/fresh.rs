//! Extension: requests that cannot be repeated by whoever overheard them (docs/extensions.md, "fresh").
//!
//! The field `fresh` of a request is `{"node":N,"seq":S,"registry":R,"signature":B}`: B is by the node's key over
//! [`text`], which covers the whole request, its values included. S is Unix microseconds by the registry's clock and is
//! used once.

/// A request counts as fresh within this distance of the registry's clock, microseconds.
pub const WINDOW: u64 = 60_000_000;

/// What is signed. `registry` is the registry's id, empty in a `register` or `rotate_key` that comes before it is known; `body` the
/// request's JSON without the field `fresh`, without spaces, in the order of its keys.
pub fn text(registry: &str, seq: u64, body: &str) -> String {
    format!("pilot fresh request 1\n{registry}\n{seq}\n{body}")
}
