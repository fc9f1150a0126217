//! What was seen, in a form that is the same for the real daemon and the model: text without random values.

use std::fmt;
use std::time::Duration;

/// One thing the node did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// When, milliseconds since the scenario began.
    pub ms: u64,
    /// Window field, if it has one.
    pub window: Option<u16>,
    /// What, without the window.
    pub what: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>7} ", self.ms)?;
        match self.window {
            Some(w) => write!(f, "{:>4} ", w)?,
            None => f.write_str("   - ")?,
        }
        f.write_str(&self.what)
    }
}

impl Line {
    /// Parses what `Display` wrote.
    pub fn parse(text: &str) -> Option<Line> {
        let text = text.trim_start();
        let (ms, rest) = text.split_once(' ')?;
        let (window, what) = rest.trim_start().split_once(' ')?;
        Some(Line {
            ms: ms.parse().ok()?,
            window: if window == "-" { None } else { Some(window.parse().ok()?) },
            what: what.to_owned(),
        })
    }
}

/// How much two traces may differ.
#[derive(Debug, Clone, Copy)]
pub struct Tolerance {
    /// Time of a line.
    pub time: Duration,
    /// Part of the line's own time on top of that, per cent: timers with jitter add up.
    pub percent: u64,
    /// Window field: the real daemon's application and its packet worker race for the slots. Zero is never taken for
    /// anything else.
    pub window: u16,
    /// Lines that begin so may be in one trace alone: the real daemon was seen to do it, and not to.
    pub either: &'static [&'static str],
}

impl Default for Tolerance {
    fn default() -> Tolerance {
        Tolerance { time: Duration::from_millis(180), percent: 0, window: 6, either: &[] }
    }
}

/// The end of a tunnel keepalive's line. One that falls due exactly at a tick (25 s are five of them) leaves at that tick
/// or at the next, 5 s later, as the daemon's timers happen to jitter.
const KEEPALIVE: &str = " control - 0>0 seq 0 ack 0";
const KEEPALIVE_TICK: u64 = 5_200;

fn same(real: &Line, model: &Line, tolerance: &Tolerance) -> bool {
    let window = match (real.window, model.window) {
        (Some(a), Some(b)) => a == b || (a > 0 && b > 0 && a.abs_diff(b) <= tolerance.window),
        (a, b) => a == b,
    };
    let mut most = tolerance.time.as_millis() as u64 + real.ms * tolerance.percent / 100;
    if real.what.ends_with(KEEPALIVE) {
        most = most.max(KEEPALIVE_TICK);
    }
    real.what == model.what && window && real.ms.abs_diff(model.ms) <= most
}

/// How two traces differ.
#[derive(Debug)]
pub struct Difference {
    /// Lines that only one of them has.
    pub lines: usize,
    /// Those lines.
    pub text: String,
}

/// Compares two traces. Lines closer together than the tolerance may have changed places: the real daemon sends from
/// several threads.
pub fn compare(real: &[Line], model: &[Line], tolerance: &Tolerance) -> Result<(), Difference> {
    let mut used = vec![false; model.len()];
    let mut only_real = Vec::new();
    for line in real {
        match (0..model.len()).find(|i| !used[*i] && same(line, &model[*i], tolerance)) {
            Some(i) => used[i] = true,
            None => only_real.push(line),
        }
    }
    let mut only_model: Vec<&Line> = model.iter().zip(&used).filter(|(_, u)| !**u).map(|(l, _)| l).collect();
    for only in [&mut only_real, &mut only_model] {
        only.retain(|line| !tolerance.either.iter().any(|start| line.what.starts_with(start)));
    }
    if only_real.is_empty() && only_model.is_empty() {
        return Ok(());
    }
    let lines = only_real.len() + only_model.len();
    let mut text = String::new();
    for line in only_real {
        text.push_str(&format!("  only the daemon: {line}\n"));
    }
    for line in only_model {
        text.push_str(&format!("  only the model:  {line}\n"));
    }
    Err(Difference { lines, text })
}

/// A trace as text.
pub fn to_text(lines: &[Line]) -> String {
    lines.iter().map(|l| format!("{l}\n")).collect()
}

/// A trace from text; lines that begin with `#` are remarks.
pub fn from_text(text: &str) -> Vec<Line> {
    let lines = text.lines().filter(|l| !l.starts_with('#') && !l.trim().is_empty());
    lines.map(|l| Line::parse(l).unwrap_or_else(|| panic!("not a line of a trace: {l}"))).collect()
}
