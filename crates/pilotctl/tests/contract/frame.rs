//! The command line itself: grammar, envelopes, help, exit statuses (spec 08 sections 1.1 to 1.4).

use crate::support::Home;
use std::os::unix::process::CommandExt;

#[test]
fn version_is_text_or_json() {
    let home = Home::new();
    let ran = home.run(&["version"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, concat!(env!("CARGO_PKG_VERSION"), "\n")));
    assert_eq!(home.run(&["--version"]).stdout, ran.stdout);
    let json = home.run(&["version", "--json"]);
    assert_eq!(
        json.stdout,
        concat!("{\"data\":{\"version\":\"", env!("CARGO_PKG_VERSION"), "\"},\"status\":\"ok\"}\n")
    );
}

#[test]
fn no_arguments_is_a_usage_error_and_help_is_not() {
    let home = Home::new();
    let ran = home.run(&[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (2, ""));
    assert!(ran.stderr.contains("Usage: pilotctl"), "{ran:?}");
    for words in [&["--help"][..], &["-h"], &["help"], &["-help"]] {
        let ran = home.run(words);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{words:?}");
        assert!(ran.stdout.contains("Usage: pilotctl"), "{words:?}");
    }
}

#[test]
fn help_on_a_command_is_on_stdout_and_names_its_flags() {
    let home = Home::new();
    for words in
        [&["daemon", "start", "--help"][..], &["help", "daemon", "start"], &["daemon", "start", "-h"]]
    {
        let ran = home.run(words);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{words:?}");
        assert!(ran.stdout.contains("--trust-auto-approve"), "{ran:?}");
    }
    let group = home.run(&["rendezvous", "--help"]);
    assert!(group.stdout.contains("rendezvous stop"), "{group:?}");
}

#[test]
fn an_unknown_command_is_status_2_as_text_and_1_as_json() {
    let home = Home::new();
    let text = home.run(&["fnid", "x"]);
    assert_eq!((text.code, text.stdout.as_str()), (2, ""));
    assert!(text.stderr.contains("Usage: pilotctl"), "{text:?}");
    let last = "\n\nerror: unknown command: fnid\nhint:  run 'pilotctl context' for the full command list\n";
    assert!(text.stderr.ends_with(last), "the error is what stays on the screen: {text:?}");
    let error = home.json(&["fnid", "x"]).error();
    assert_eq!(error["code"], "invalid_argument");
    assert_eq!(error["hint"], "run 'pilotctl context' for the full command list");
}

#[test]
fn an_unknown_flag_is_refused_with_the_nearest_one() {
    let home = Home::new();
    let error = home.json(&["daemon", "start", "--hostnam", "x"]).error();
    assert_eq!(error["message"], "daemon start: unknown flag --hostnam");
    assert!(error["hint"].as_str().unwrap().starts_with("did you mean --hostname?"), "{error}");
    assert!(!home.file("pilot.pid").exists(), "nothing was started");
}

#[test]
fn errors_are_one_line_of_json_or_two_of_text() {
    let home = Home::new();
    let text = home.run(&["info"]);
    assert_eq!((text.code, text.stdout.as_str()), (1, ""));
    let socket = home.path().join("pilot.sock");
    let hint = format!("start the daemon with: pilotctl daemon start  (tried {})", socket.display());
    assert_eq!(text.stderr, format!("error: daemon is not running\nhint:  {hint}\n"));
    let json = home.run(&["info", "--json"]);
    assert_eq!(
        json.stderr,
        format!(
            "{{\"code\":\"not_running\",\"error\":\"daemon is not running\",\"hint\":\"{hint}\",\
             \"message\":\"daemon is not running\",\"status\":\"error\"}}\n"
        )
    );
}

#[test]
fn a_group_without_its_second_word_lists_what_there_is() {
    let home = Home::new();
    let error = home.json(&["daemon"]).error();
    assert_eq!(error["message"], "missing subcommand");
    assert_eq!(error["hint"], "available: pilotctl daemon start | stop | status");
    let error = home.json(&["daemon", "restart"]).error();
    assert_eq!(error["message"], "unknown daemon subcommand: restart");
    assert_eq!(error["hint"], "available: start, stop, status");
}

#[test]
fn the_catalogue_lists_exactly_the_commands_that_parse() {
    let home = Home::new();
    let catalogue = home.json(&["context"]).data();
    let commands = catalogue["commands"].as_object().unwrap();
    assert!(commands.len() > 20 && commands.contains_key("daemon start"), "{catalogue}");
    for name in commands.keys() {
        let words: Vec<&str> = name.split(' ').collect();
        let ran = home.run(&[&words[..], &["--help"]].concat());
        assert!(ran.stdout.contains(&format!("Usage: pilotctl {name}")), "{name}: {ran:?}");
    }
    let entry = home.json(&["context", "daemon", "stop"]).data();
    assert_eq!(entry, commands["daemon stop"]);
    let error = home.json(&["context", "nothing"]).error();
    assert_eq!(error["code"], "not_found");
}

#[test]
fn a_home_that_cannot_be_written_is_an_error_with_a_way_out() {
    let home = Home::new();
    // Where not even root can make a directory.
    for args in [&["--json", "daemon", "start"][..], &["--json", "init"]] {
        let error = home.run_with(args, &[("PILOT_HOME", "/proc")]).error();
        assert!(error["message"].as_str().unwrap().contains("/proc/.pilot"), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("PILOT_HOME=DIR"), "{error}");
    }
}

#[test]
fn port_0_is_no_port_to_serve() {
    let home = Home::new();
    let error = home.json(&["recv", "0"]).error();
    assert_eq!(error["message"], "recv: port 0 cannot be served");
}

#[test]
fn colours_never_reach_a_pipe() {
    let home = Home::new();
    assert!(!home.run(&["quickstart"]).stdout.contains('\x1b'));
}

#[test]
fn the_binary_is_what_it_is_called() {
    let home = Home::new();
    let called = |name: &str, args: &[&str]| {
        let mut command = home.command(args);
        command.arg0(name);
        command.output().expect("the binary runs")
    };
    let daemon = called("pilot-daemon", &["-version"]);
    assert_eq!(daemon.stdout, concat!(env!("CARGO_PKG_VERSION"), "\n").as_bytes());
    let help = called("/usr/bin/pilot-rendezvous", &["-help"]);
    assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: pilot-rendezvous [flags]"));
    let gateway = called("pilot-gateway", &["-socket", "x", "run"]);
    assert_eq!(gateway.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&gateway.stderr).starts_with("error: the gateway is not in this version")
    );
}
