//! The model against the recorded datagrams of the real 1.18.0 daemon (`tests/interop` records and checks them).

mod lab;

use lab::{scenarios, trace};

#[test]
fn the_model_sends_what_the_daemon_was_seen_to_send() {
    let mut failures = Vec::new();
    for scenario in scenarios::all() {
        let path = format!("{}/tests/golden/{}.txt", env!("CARGO_MANIFEST_DIR"), scenario.name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}; record it"));
        let real = trace::from_text(&text);
        assert_eq!(trace::to_text(&real), text, "{path} is as it was written");
        if let Err(error) = scenario.compare_with_model(&real) {
            failures.push(format!("{}:\n{error}", scenario.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_datagram_more_or_less_or_another_is_a_difference() {
    for scenario in scenarios::all() {
        let path = format!("{}/tests/golden/{}.txt", env!("CARGO_MANIFEST_DIR"), scenario.name);
        let real =
            trace::from_text(&std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}")));
        let Some(last) = real.last().cloned() else { continue };
        let without = &real[..real.len() - 1];
        let mut with = real.clone();
        with.push(last.clone());
        let mut other = without.to_vec();
        other.push(trace::Line { what: format!("{}0", last.what), ..last });
        for altered in [without, &with, &other] {
            assert!(scenario.compare_with_model(altered).is_err(), "{}: not noticed", scenario.name);
        }
    }
}

#[test]
fn at_least_thirty_scenarios_are_compared() {
    assert!(scenarios::all().len() >= 30);
}
