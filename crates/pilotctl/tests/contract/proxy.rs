//! `proxy show | set-credentials | clear`.

#![allow(clippy::unwrap_used)]

use crate::support::Home;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

/// Keeps a password that comes on stdin.
fn keep(home: &Home, args: &[&str], password: &str) -> (i32, String, String) {
    let input = home.path().join("password");
    fs::write(&input, password).unwrap();
    let mut command = home.command(args);
    command.arg("--json").stdin(Stdio::from(fs::File::open(&input).unwrap()));
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn credentials_are_kept_privately_shown_without_their_secret_and_forgotten() {
    let home = Home::new();
    assert_eq!(home.json(&["proxy", "show"]).data()["proxies"], serde_json::json!([]));
    let set = ["proxy", "set-credentials", "http://proxy.example:3128", "--user", "agent"];
    let (code, stdout, stderr) = keep(&home, &set, "s3cret\n");
    let file = home.file("proxy-credentials.json");
    assert_eq!((code, &*stderr), (0, ""));
    let said: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(
        said["data"],
        serde_json::json!({"proxy": "proxy.example:3128", "user": "agent", "file": file.to_str().unwrap()})
    );
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(fs::read_to_string(&file).unwrap().contains("s3cret"), "that is where it is kept");
    let shown = home.json(&["proxy", "show"]);
    assert!(!shown.stdout.contains("s3cret"), "{shown:?}");
    let rows = serde_json::json!([{"proxy": "proxy.example:3128", "user": "agent"}]);
    assert_eq!(shown.data()["proxies"], rows);
    let cleared = home.json(&["proxy", "clear", "proxy.example:3128"]).data();
    assert_eq!(cleared, serde_json::json!({"proxy": "proxy.example:3128", "cleared": true}));
    let error = home.json(&["proxy", "clear", "proxy.example:3128"]).error();
    assert_eq!(
        (&error["code"], &error["hint"]),
        (&"not_found".into(), &"list them with: pilotctl proxy show".into())
    );
}

#[test]
fn what_is_wrong_with_credentials_is_said_and_nothing_is_kept() {
    let home = Home::new();
    let error = |args: &[&str], password: &str| {
        let (code, _, stderr) = keep(&home, &[&["proxy", "set-credentials"], args].concat(), password);
        assert_ne!(code, 0);
        assert!(!stderr.contains("s3cret"), "{stderr}");
        serde_json::from_str::<serde_json::Value>(stderr.lines().last().unwrap()).unwrap()["message"].clone()
    };
    assert_eq!(error(&["p:1"], "s3cret"), "--user NAME is needed, without a colon");
    assert_eq!(error(&["p:1", "--user", "a"], ""), "no password on stdin");
    assert_eq!(
        error(&["http://a:s3cret@p:1", "--user", "a"], "x"),
        "the proxy must be named without user and password"
    );
    assert!(!home.file("proxy-credentials.json").exists());
}
