//! The log: one file, put aside by size.

use crate::error::CliError;
use pilot_daemon::config::{LogFormat, LogSettings};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// A file that is renamed to `<name>.1` (and that to `<name>.2`, …) when it has grown to a size.
#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    file: File,
    len: u64,
    max_bytes: u64,
    backups: u64,
}

impl Rotating {
    fn open(path: &Path, max_bytes: u64, backups: u64) -> io::Result<Rotating> {
        let file = append(path)?;
        let len = file.metadata()?.len();
        Ok(Rotating { path: path.to_owned(), file, len, max_bytes, backups })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: u64| PathBuf::from(format!("{}.{n}", self.path.display()));
        for n in (1..self.backups).rev() {
            let _ = fs::rename(numbered(n), numbered(n + 1));
        }
        match self.backups {
            0 => self.file.set_len(0)?,
            _ => fs::rename(&self.path, numbered(1))?,
        }
        self.file = append(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

impl Write for Rotating {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.max_bytes > 0 && self.len + line.len() as u64 > self.max_bytes && self.len > 0 {
            self.rotate()?;
        }
        self.file.write_all(line)?;
        self.len += line.len() as u64;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Starts logging of this process, to `file` or to stderr.
pub fn init(settings: &LogSettings, file: Option<&Path>) -> Result<(), CliError> {
    let level: LevelFilter = settings.level.parse().unwrap_or(LevelFilter::INFO);
    let writer = match file {
        None => BoxMakeWriter::new(io::stderr),
        Some(path) => {
            let log = Rotating::open(path, settings.max_bytes, settings.backups)
                .map_err(|e| CliError::io(format!("open {}", path.display()), &e))?;
            BoxMakeWriter::new(Mutex::new(log))
        }
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_ansi(false).with_writer(writer);
    let started = match settings.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|e| CliError::internal(format!("start logging: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_and_old_ones_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pilot.log");
        let mut log = Rotating::open(&path, 10, 2).unwrap();
        for line in ["first-\n", "second\n", "third-\n", "fourth\n"] {
            log.write_all(line.as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert_eq!(read("pilot.log").as_deref(), Some("fourth\n"));
        assert_eq!(read("pilot.log.1").as_deref(), Some("third-\n"));
        assert_eq!(read("pilot.log.2").as_deref(), Some("second\n"));
        assert_eq!(read("pilot.log.3"), None);
    }

    #[test]
    fn a_log_is_continued_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pilot.log");
        Rotating::open(&path, 100, 2).unwrap().write_all(b"one\n").unwrap();
        Rotating::open(&path, 100, 2).unwrap().write_all(b"two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
