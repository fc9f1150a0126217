//! Progress on stderr while something takes time.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// A bar or spinner; silent when stderr is no terminal. Vanishes when dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar over `total` bytes.
    pub fn bytes(shown: bool, label: &str, total: u64) -> Progress {
        Progress::new(
            shown,
            Some(total),
            label,
            "{msg} [{bar:30}] {percent}% {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        )
    }

    /// A spinner with the elapsed time.
    pub fn spinner(shown: bool, label: &str) -> Progress {
        let progress = Progress::new(shown, None, label, "{spinner} {msg}… {elapsed}");
        if shown {
            progress.bar.enable_steady_tick(Duration::from_millis(120));
        }
        progress
    }

    fn new(shown: bool, total: Option<u64>, label: &str, template: &str) -> Progress {
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(total, target).with_message(label.to_owned());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Progress { bar }
    }

    /// Sets how far it is, bytes.
    pub fn set(&self, done: u64) {
        self.bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
