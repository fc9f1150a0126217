//! `demo`: all steps work, and nothing stays, whatever happens.

use crate::support::Home;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

const STEPS: [&str; 9] = [
    "rendezvous",
    "registration",
    "registration",
    "discovery",
    "trust",
    "ping",
    "message",
    "request",
    "file",
];

fn command(home: &Home, args: &[&str]) -> Command {
    let mut command = home.command(&[&["demo", "--file-mb", "1"], args].concat());
    command.env("TMPDIR", home.path());
    command
}

/// Processes whose command line names something in this folder, or that run from it.
fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().expect("UTF-8").to_owned();
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let line = |path: PathBuf| {
        let environ = fs::read(path.join("environ")).unwrap_or_default();
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        let found = [&environ, &line].iter().any(|b| String::from_utf8_lossy(b).contains(&dir));
        found.then(|| String::from_utf8_lossy(&line).replace('\0', " "))
    };
    entries.filter_map(|e| line(e.path())).filter(|line| !line.is_empty()).collect()
}

fn assert_nothing_left(home: &Home) {
    assert_eq!(processes_of(home.path()), Vec::<String>::new());
    let left: Vec<_> = fs::read_dir(home.path()).expect("home").flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn every_step_works_and_nothing_stays() {
    let home = Home::new();
    let out = command(&home, &["--json"]).output().expect("the binary runs");
    assert!(out.status.success(), "{out:?}");
    let envelope: serde_json::Value = serde_json::from_slice(&out.stdout).expect("JSON");
    let steps = envelope["data"]["steps"].as_array().expect("steps");
    let names: Vec<&str> = steps.iter().filter_map(|s| s["step"].as_str()).collect();
    assert_eq!(names[..STEPS.len()], STEPS, "{envelope}");
    assert!(steps.iter().all(|s| s["ms"].as_f64().is_some()), "{envelope}");
    assert_nothing_left(&home);
}

/// Starts the demo and returns when the daemons of both agents run. The other end of its stdout stays open.
fn under_way(home: &Home) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child =
        command(home, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let seen =
        lines.by_ref().map_while(Result::ok).filter(|line| line.contains("registration")).take(2).count();
    assert_eq!(seen, 2, "the demo ended early");
    (child, lines)
}

/// The end of a demo that fails: its stderr.
fn failed(child: Child) -> String {
    let out = child.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    String::from_utf8(out.stderr).expect("UTF-8")
}

#[test]
fn interrupted_it_cleans_up_and_fails() {
    for signal in [Signal::INT, Signal::TERM] {
        let home = Home::new();
        let (child, _stdout) = under_way(&home);
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid")).expect("pid");
        kill_process(pid, signal).expect("signalled");
        let said = failed(child);
        assert!(said.starts_with("error: interrupted; everything was stopped"), "{signal:?}: {said}");
        assert_nothing_left(&home);
    }
}

#[test]
fn a_failing_step_is_named_and_nothing_stays() {
    let home = Home::new();
    let (child, _stdout) = under_way(&home);
    // Without its inbox the message step cannot succeed.
    let demo = fs::read_dir(home.path()).expect("home").flatten().next().expect("the folder").path();
    fs::write(demo.join("bob/.pilot/inbox"), "not a folder").expect("write");
    let said = failed(child);
    assert!(said.starts_with("error: alice: pilotctl send-message bob"), "{said}");
    assert_nothing_left(&home);
}

#[test]
fn kept_it_can_be_used_and_stopped_with_the_commands_it_prints() {
    let home = Home::new();
    let out = command(&home, &["--keep"]).output().expect("the binary runs");
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).expect("UTF-8");
    let mut lines = text.lines().filter_map(|l| l.trim().strip_prefix("HOME="));
    let ran: Vec<i32> = lines
        .by_ref()
        .map(|line| {
            let (at, words) = line.split_once(" pilotctl ").expect("a command");
            let words: Vec<&str> = words.split(' ').collect();
            let mut command = home.command(&words);
            command.env("HOME", at).env_remove("PILOT_SOCKET");
            command.output().expect("it runs").status.code().unwrap_or(-1)
        })
        .collect();
    assert_eq!(ran, [0; 7], "{text}");
    assert!(text.trim_end().lines().last().is_some_and(|l| l.trim().starts_with("rm -r ")), "{text}");
    assert_eq!(processes_of(home.path()), Vec::<String>::new());
}
