//! JSON as the reference prints it: sorted keys, `<`, `>`, `&` escaped, whole floats without a fraction.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter, Serializer};
use std::io::{self, Write};

struct Escaped<F>(F);

macro_rules! forward {
    ($($method:ident($($arg:ident: $ty:ty),*);)*) => {
        $(fn $method<W: ?Sized + Write>(&mut self, w: &mut W, $($arg: $ty),*) -> io::Result<()> {
            self.0.$method(w, $($arg),*)
        })*
    };
}

impl<F: Formatter> Formatter for Escaped<F> {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, w: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            w.write_all(&rest.as_bytes()[..at])?;
            // `at` is the start of a character, so there is one.
            let special = rest[at..].chars().next().unwrap_or_default();
            write!(w, "\\u{:04x}", u32::from(special))?;
            rest = &rest[at + special.len_utf8()..];
        }
        w.write_all(rest.as_bytes())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, w: &mut W, value: f64) -> io::Result<()> {
        match value.fract() == 0.0 && value.abs() < 1e15 {
            true => write!(w, "{}", value as i64),
            false => self.0.write_f64(w, value),
        }
    }

    forward! {
        begin_array(); end_array(); begin_array_value(first: bool); end_array_value();
        begin_object(); end_object(); begin_object_key(first: bool); end_object_key();
        begin_object_value(); end_object_value();
    }
}

fn render<F: Formatter>(value: &Value, formatter: F) -> String {
    let mut out = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut out, Escaped(formatter));
    // Writing a `Value` into a `Vec` cannot fail: its keys are strings and memory does not refuse.
    let _ = value.serialize(&mut serializer);
    String::from_utf8_lossy(&out).into_owned()
}

/// One line.
pub fn compact(value: &Value) -> String {
    render(value, CompactFormatter)
}

/// Indented by two spaces.
pub fn pretty(value: &Value) -> String {
    render(value, PrettyFormatter::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn keys_are_sorted_and_markup_is_escaped() {
        let value = json!({"z": "a<b>&c", "a": [1, 2.0, 0.5], "m": {"y": null, "b": []}});
        assert_eq!(compact(&value), r#"{"a":[1,2,0.5],"m":{"b":[],"y":null},"z":"a\u003cb\u003e\u0026c"}"#);
    }

    #[test]
    fn pretty_output_is_indented_by_two_spaces() {
        assert_eq!(pretty(&json!({"b": 1, "a": [true]})), "{\n  \"a\": [\n    true\n  ],\n  \"b\": 1\n}");
    }
}
