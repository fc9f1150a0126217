//! Tests of the service formats and state machines, by section of spec 06.

mod formats;
mod transfer;

use super::*;
use bytes::Bytes;
use serde_json::Value;

pub(super) fn vectors(section: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("../../../tests/vectors/services.json")).unwrap();
    let list = all[section]["exchanges"].as_array().or(all[section]["files"].as_array()).unwrap().clone();
    assert!(!list.is_empty());
    list
}

pub(super) fn unhex(text: &str) -> Bytes {
    let digit = |b: u8| (b as char).to_digit(16).unwrap() as u8;
    text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

/// The bytes of a client; `None` if the vector shows only part of them.
pub(super) fn sent(vector: &Value) -> Option<Bytes> {
    let text = vector["client_to_server"].as_str().unwrap();
    (!text.ends_with("...")).then(|| unhex(text))
}

/// A file of `len` bytes that does not repeat.
pub(super) fn contents(len: usize) -> Bytes {
    let mut state = 1u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}
