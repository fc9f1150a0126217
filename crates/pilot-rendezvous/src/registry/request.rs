//! Typed access to a request's fields and the answers to it (spec 05 sections 2.1 and 3).

use serde_json::{Map, Value};

/// One request: a JSON object. A field of the wrong type counts as absent.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a>(pub &'a Map<String, Value>);

impl<'a> Request<'a> {
    /// The request type, empty if absent.
    pub fn kind(self) -> &'a str {
        self.text("type")
    }

    /// A text, empty if absent.
    pub fn text(self, field: &str) -> &'a str {
        self.0.get(field).and_then(Value::as_str).unwrap_or("")
    }

    /// Whether the field is there, of any type.
    pub fn has(self, field: &str) -> bool {
        self.0.contains_key(field)
    }

    /// The raw field.
    pub fn value(self, field: &str) -> Option<&'a Value> {
        self.0.get(field)
    }

    /// A truth value, false if absent.
    pub fn flag(self, field: &str) -> bool {
        self.0.get(field).and_then(Value::as_bool).unwrap_or(false)
    }

    /// A number between 0 and `max`; anything else is 0.
    pub fn number(self, field: &str, max: u64) -> u64 {
        let Some(Value::Number(n)) = self.0.get(field) else { return 0 };
        let n = match (n.as_u64(), n.as_f64()) {
            (Some(n), _) => n,
            // The cast saturates and cuts the fraction off.
            (None, Some(f)) if f >= 0.0 => f as u64,
            _ => 0,
        };
        if n <= max { n } else { 0 }
    }

    /// A node id; 0 if absent or out of range.
    pub fn node(self, field: &str) -> u32 {
        self.number(field, u64::from(u32::MAX)) as u32
    }

    /// A network number; 0 if absent or out of range.
    pub fn network(self, field: &str) -> u16 {
        self.number(field, u64::from(u16::MAX)) as u16
    }

    /// The texts of an array; other elements are skipped. Empty if absent.
    pub fn texts(self, field: &str) -> Vec<&'a str> {
        let list = self.0.get(field).and_then(Value::as_array);
        list.map(|l| l.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
    }
}

/// Why a request was not done; the text the client gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused(pub String);

impl From<String> for Refused {
    fn from(text: String) -> Refused {
        Refused(text)
    }
}

impl From<&str> for Refused {
    fn from(text: &str) -> Refused {
        Refused(text.to_owned())
    }
}

/// What a handler returns: the answer object, or the reason for an error answer.
pub(crate) type Answer = Result<Value, Refused>;

/// An error answer.
pub(crate) fn error(text: &str) -> Value {
    serde_json::json!({"type": "error", "error": text})
}

/// The fixed phrase for a missing node, which 1.18.0 heartbeats act on (spec 05 section 3.2).
pub(crate) fn no_node(id: u32) -> Refused {
    Refused(format!("node {id}: node not found"))
}

/// The fixed phrase for a missing network.
pub(crate) fn no_network(id: u16) -> Refused {
    Refused(format!("network {id}: network not found"))
}
