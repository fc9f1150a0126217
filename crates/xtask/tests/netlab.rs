//! The laboratory from a terminal: one command makes it, another runs there, and nothing is left.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

fn netlab(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("netlab").args(args);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_laboratory_is_made_entered_and_gone() {
    let name = format!("test-{}", std::process::id());
    let on = |host: &str, command: &[&str]| {
        let args = [&["exec", "--name", &name, host, "--"], command].concat();
        netlab(&args).output().unwrap()
    };
    let early = on("a", &["true"]);
    assert!(!early.status.success());
    assert!(said(&early).contains("start one with: netlab up"), "{}", said(&early));

    let args = ["up", "--name", &name, "--seed", "1", "carrier", "ipv6-only"];
    let mut up = Up(netlab(&args).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(up.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let shown: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with("run commands with")).collect();
    assert!(shown.iter().any(|l| l.starts_with("a ") && l.contains("192.168.97.2")), "{shown:?}");

    let output = on("a", &["sh", "-c", "ip -o -4 addr show dev eth0; exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    assert!(said(&output).contains("192.168.97.2/24"), "{}", said(&output));
    let output = on("b", &["ip", "-o", "addr", "show", "dev", "eth0"]);
    assert!(
        !said(&output).contains("inet ") && said(&output).contains("2a0f:7701:62::2/64"),
        "{}",
        said(&output)
    );
    let output = on("z", &["true"]);
    assert!(said(&output).contains("no host \"z\"; there are: public, a, b"), "{}", said(&output));
    let second = netlab(&["up", "--name", &name, "public"]).output().unwrap();
    assert!(said(&second).contains("is up already; choose another --name"), "{}", said(&second));

    drop(up);
    let late = on("a", &["true"]);
    assert!(said(&late).contains("start one with: netlab up"), "{}", said(&late));
}
