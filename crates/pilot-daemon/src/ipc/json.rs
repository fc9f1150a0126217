//! JSON replies: one compact object, keys sorted, `<`, `>`, `&` escaped (spec 07 section 3).

use bytes::Bytes;
use serde_json::{Map, Value};

/// The text of `value`. Objects of `serde_json` are sorted by key.
pub(crate) fn encode(value: &Value) -> Bytes {
    let text = value.to_string();
    if !text.bytes().any(|b| matches!(b, b'<' | b'>' | b'&' | 0xE2)) {
        return Bytes::from(text);
    }
    // These characters occur only inside strings.
    let mut out = String::with_capacity(text.len() + 64);
    for c in text.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            other => out.push(other),
        }
    }
    Bytes::from(out)
}

/// Writes whole numbers without a fraction, in `value` and everything inside it.
pub(crate) fn whole_numbers(value: &mut Value) {
    match value {
        Value::Number(n) => {
            if let Some(f) = n.as_f64()
                && n.is_f64()
                && f.fract() == 0.0
                && f.abs() < 9.0e15
            {
                // Exact: a whole number within 53 bits.
                *value = Value::from(f as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(whole_numbers),
        Value::Object(map) => map.values_mut().for_each(whole_numbers),
        _ => {}
    }
}

/// Takes items while their texts stay within `budget` bytes, commas included. True: something was left out.
pub(crate) fn fit(items: Vec<Value>, budget: usize) -> (Vec<Value>, bool) {
    let mut used = 0;
    let all = items.len();
    let kept: Vec<Value> = items
        .into_iter()
        .take_while(|item| {
            used += encode(item).len() + 1;
            used <= budget
        })
        .collect();
    let cut = kept.len() < all;
    (kept, cut)
}

/// An object from pairs.
pub(crate) fn object<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn replies_are_sorted_compact_and_escaped() {
        let value = json!({"z": 1, "a": "<b> & \u{2028}é", "m": [1.5, null]});
        assert_eq!(encode(&value), r#"{"a":"\u003cb\u003e \u0026 \u2028é","m":[1.5,null],"z":1}"#);
        assert_eq!(serde_json::from_slice::<Value>(&encode(&value)).unwrap(), value);
    }

    #[test]
    fn whole_numbers_have_no_fraction() {
        let mut value = json!({"a": 2.0, "b": [0.5, -3.0], "c": 7});
        whole_numbers(&mut value);
        assert_eq!(value.to_string(), r#"{"a":2,"b":[0.5,-3],"c":7}"#);
    }

    #[test]
    fn lists_are_cut_to_the_budget() {
        let items: Vec<Value> = (0..10).map(|_| json!("xx")).collect();
        let (kept, cut) = fit(items.clone(), 15);
        assert_eq!((kept.len(), cut), (3, true));
        assert_eq!(fit(items, 50), (vec![json!("xx"); 10], false));
    }
}
