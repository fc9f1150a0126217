//! What a rendezvous has counted, how fast it counts, and both in words.

use pilot_rendezvous::Stats;
use serde_json::{Value, json};
use std::time::Instant;

/// The last look at the counters.
#[derive(Default)]
pub struct Counted {
    last: Option<(Instant, Stats)>,
    /// Something was counted between the last two looks.
    moving: bool,
}

impl Counted {
    /// What is to be recorded; `None` if nothing has changed.
    pub fn look(&mut self, stats: Stats, now: Instant) -> Option<Value> {
        let (then, before) = self.last.replace((now, stats)).unwrap_or((now, stats));
        let secs = now.saturating_duration_since(then).as_secs_f64();
        let first = secs == 0.0;
        // Rates fall to zero once more after the last change.
        let changed = stats != before;
        if !first && !changed && !std::mem::replace(&mut self.moving, changed) {
            return None;
        }
        self.moving = changed;
        let rate = |counter: fn(&Stats) -> u64| match first {
            true => 0,
            false => (counter(&stats).saturating_sub(counter(&before)) as f64 / secs).round() as u64,
        };
        let mut value = to_json(&stats);
        value["per_second"] = json!({
            "relayed": rate(|s| s.relayed),
            "relayed_bytes": rate(|s| s.relayed_bytes),
            "relay_lost": rate(lost),
            "requests": rate(|s| s.requests),
        });
        Some(value)
    }

    /// The last look was not recorded.
    pub fn forget(&mut self) {
        self.moving = true;
    }
}

/// Frames not relayed, for whatever cause.
fn lost(stats: &Stats) -> u64 {
    stats.relay_dropped
        + stats.relay_limited
        + stats.relay_overrun
        + stats.relay_unsent
        + stats.compat_dropped
}

/// Lines of `rendezvous status`.
pub fn in_words(counters: &Value) -> String {
    let number = |key: &str| counters[key].as_u64().unwrap_or(0);
    let rate = |key: &str| counters["per_second"][key].as_u64().unwrap_or(0);
    let causes: Vec<String> = [
        ("relay_dropped", "unknown destination"),
        ("relay_limited", "over a budget"),
        ("relay_overrun", "queue full"),
        ("relay_unsent", "refused by the system"),
        ("compat_dropped", "slow WebSocket"),
        ("receive_overflow", "lost before they were read"),
    ]
    .iter()
    .filter(|(key, _)| number(key) > 0)
    .map(|(key, cause)| format!("{} {cause}", number(key)))
    .collect();
    let lost = if causes.is_empty() { String::new() } else { format!("\n  Lost:     {}", causes.join(", ")) };
    format!(
        "  Nodes:    {} online, {} at the beacon, {} by WebSocket\n  Relayed:  {} frames, {} MB; now {}/s, {:.1} Mbit/s{lost}\n",
        number("nodes_online"),
        number("beacon_nodes"),
        number("compat_nodes"),
        number("relayed"),
        number("relayed_bytes") / 1_000_000,
        rate("relayed"),
        rate("relayed_bytes") as f64 * 8e-6,
    )
}

fn to_json(stats: &Stats) -> serde_json::Value {
    json!({
        "nodes_online": stats.nodes_online,
        "nodes_known": stats.nodes_known,
        "connections": stats.connections,
        "connections_refused_rate": stats.connections_refused_rate,
        "connections_refused_share": stats.connections_refused_share,
        "connections_refused_full": stats.connections_refused_full,
        "connections_evicted": stats.connections_evicted,
        "requests": stats.requests,
        "requests_failed": stats.errors,
        "requests_delayed": stats.requests_delayed,
        "requests_refused": stats.requests_refused,
        "bad_signatures": stats.bad_signatures,
        "beacon_nodes": stats.beacon_nodes,
        "relayed": stats.relayed,
        "relayed_bytes": stats.relayed_bytes,
        "relay_dropped": stats.relay_dropped,
        "relay_limited": stats.relay_limited,
        "relay_overrun": stats.relay_overrun,
        "relay_unsent": stats.relay_unsent,
        "answers_unsent": stats.answers_unsent,
        "receive_overflow": stats.receive_overflow,
        "punches": stats.punches,
        "punch_refused": stats.punch_refused,
        "discover_limited": stats.discover_limited,
        "claims_refused": stats.claims_refused,
        "claims_dropped": stats.claims_dropped,
        "beacon_garbage": stats.beacon_garbage,
        "compat_nodes": stats.compat_nodes,
        "compat_refused": stats.compat_refused,
        "compat_dropped": stats.compat_dropped,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn rates_are_of_the_time_between_two_looks_and_end_at_zero() {
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        let mut counted = Counted::default();
        let mut stats = Stats::default();
        assert_eq!(counted.look(stats, start).unwrap()["per_second"]["relayed"], 0);
        assert_eq!(counted.look(stats, at(5)), None);
        (stats.relayed, stats.relayed_bytes, stats.relay_limited, stats.relay_overrun) = (50, 60_000, 5, 10);
        let value = counted.look(stats, at(10)).unwrap();
        assert_eq!((&value["relayed"], &value["relayed_bytes"]), (&json!(50), &json!(60_000)));
        let expected = json!({"relayed": 10, "relayed_bytes": 12_000, "relay_lost": 3, "requests": 0});
        assert_eq!(value["per_second"], expected);
        assert_eq!(counted.look(stats, at(15)).unwrap()["per_second"]["relayed"], 0);
        assert_eq!(counted.look(stats, at(20)), None);
        counted.forget();
        assert!(counted.look(stats, at(25)).is_some(), "what was not recorded is tried again");
    }

    #[test]
    fn losses_are_named_by_their_cause_if_there_are_any() {
        let quiet =
            in_words(&json!({"nodes_online": 3, "beacon_nodes": 2, "relayed": 7, "relayed_bytes": 2_500_000,
            "per_second": {"relayed": 100, "relayed_bytes": 125_000}}));
        assert_eq!(
            quiet,
            "  Nodes:    3 online, 2 at the beacon, 0 by WebSocket\n  Relayed:  7 frames, 2 MB; now 100/s, 1.0 Mbit/s\n"
        );
        let lossy = in_words(&json!({"relay_overrun": 4, "relay_dropped": 1}));
        assert!(lossy.ends_with("\n  Lost:     1 unknown destination, 4 queue full\n"), "{lossy}");
    }
}
