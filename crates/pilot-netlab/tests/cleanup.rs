//! Nothing outlives a laboratory, not even when the process that made it is killed.
#![allow(clippy::unwrap_used)]

mod common;

use common::wait_until;
use pilot_netlab::{Lab, Link};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

/// Set in the process that is to be killed.
const VICTIM: &str = "PILOT_NETLAB_TEST_VICTIM";

/// Network namespaces that some process lives in or holds open, by inode, as `/proc` shows them.
fn network_namespaces() -> Vec<String> {
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let links = [process.path().join("ns/net")].into_iter();
        let fds =
            std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten().map(|e| e.path());
        for link in links.chain(fds).filter_map(|p| std::fs::read_link(p).ok()) {
            let name = link.to_string_lossy().into_owned();
            if name.starts_with("net:[") {
                found.push(name);
            }
        }
    }
    found
}

#[test]
fn killing_the_process_ends_its_hosts_and_all_that_runs_there() {
    if std::env::var_os(VICTIM).is_some() {
        let lab = Lab::with_seed(31).expect("root");
        let host = lab.host("host").on(lab.internet(), Link::new()).start().unwrap();
        let mut command = Command::new("sh");
        // One process in a session of its own, so that no signal to a group reaches it, that ignores what it can.
        let hidden = "trap '' HUP TERM INT; readlink /proc/self/ns/net; while :; do sleep 1000; done";
        command.args(["-c", &format!("setsid sh -c \"{hidden}\" & wait")]);
        let _process = host.spawn(command).unwrap();
        loop {
            std::thread::park();
        }
    }
    let me = std::env::current_exe().unwrap();
    let mut victim = Command::new(me)
        .args(["--exact", "killing_the_process_ends_its_hosts_and_all_that_runs_there", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(victim.stdout.take().unwrap());
    let mut namespace = String::new();
    while !namespace.starts_with("net:[") {
        namespace.clear();
        assert_ne!(out.read_line(&mut namespace).unwrap(), 0, "the victim reports the namespace of its host");
    }
    let namespace = namespace.trim();
    assert!(network_namespaces().iter().any(|n| n == namespace));
    victim.kill().unwrap();
    victim.wait().unwrap();
    // Every process on the host holds the other end of this pipe.
    out.read_to_end(&mut Vec::new()).unwrap();
    wait_until("nobody holds the namespace", || !network_namespaces().iter().any(|n| n == namespace));
}
