//! `init` and `config` (spec 08 section 1.10).

use crate::support::Home;
use std::fs;
use std::os::unix::fs::PermissionsExt;

#[test]
fn init_keeps_what_was_not_given_and_bakes_no_address_in() {
    let home = Home::new();
    let data = home.json(&["init"]).data();
    assert_eq!(data["registry"], "");
    assert_eq!(home.config(), serde_json::json!({}));
    home.json(&["init", "--beacon", "10.0.0.1:9001", "--hostname", "alpha"]).data();
    let data = home.json(&["init", "--registry", "10.0.0.1:9000"]).data();
    assert_eq!(data["beacon"], "10.0.0.1:9001");
    assert_eq!(data["hostname"], "alpha");
    assert_eq!(
        home.config(),
        serde_json::json!({"registry": "10.0.0.1:9000", "beacon": "10.0.0.1:9001", "hostname": "alpha"})
    );
}

#[test]
fn the_file_is_private_and_keys_of_others_survive() {
    let home = Home::new();
    home.write("config.json", "{\"future_key\": [1, 2]}");
    home.json(&["config", "--set", "log-level=debug"]).data();
    assert_eq!(home.config(), serde_json::json!({"future_key": [1, 2], "log_level": "debug"}));
    let mode = fs::metadata(home.file("config.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn config_set_answers_with_key_and_value() {
    let home = Home::new();
    let ran = home.json(&["config", "--set", "public=true"]);
    assert_eq!(ran.stdout, "{\"data\":{\"key\":\"public\",\"value\":true},\"status\":\"ok\"}\n");
    let error = |setting: &str| home.json(&["config", "--set", setting]).error()["message"].clone();
    assert_eq!(error("foo=1"), "config: unknown key \"foo\"");
    assert_eq!(error("public"), "usage: pilotctl config --set key=value");
    assert_eq!(error("public=yes"), "config: public must be true or false");
    assert_eq!(error("hostname="), "config: hostname must not be empty");
    assert_eq!(error("registry=x"), "config: registry must be a host:port address");
    assert_eq!(error("transport=x"), "config: invalid transport \"x\": must be 'udp', 'compat' or 'auto'");
    assert_eq!(home.config(), serde_json::json!({"public": true}), "nothing wrong was stored");
}

#[test]
fn config_shows_the_file_and_the_paths_but_no_secrets() {
    let home = Home::new();
    home.json(&["config", "--set", "admin_token=s3cret"]).data();
    home.json(&["config", "--set", "registry=10.0.0.1:9000"]).data();
    let ran = home.json(&["config"]);
    assert!(!ran.stdout.contains("s3cret"), "{ran:?}");
    let data = ran.data();
    assert_eq!(data["registry"], "10.0.0.1:9000");
    assert_eq!(data["config_path"], home.file("config.json").to_str().unwrap());
    assert_eq!(data["pid_file"], home.file("pilot.pid").to_str().unwrap());
    assert_eq!(data["log_file"], home.file("pilot.log").to_str().unwrap());
    assert_eq!(data["socket"], home.path().join("pilot.sock").to_str().unwrap());
    let other = home.run_with(&["--json", "config"], &[("PILOT_REGISTRY", "10.9.9.9:1")]).data();
    assert_eq!(other["registry"], "10.9.9.9:1", "the environment wins over the file");
}

#[test]
fn a_corrupt_file_stops_every_command_that_reads_it_and_stays_as_it_is() {
    let home = Home::new();
    home.write("config.json", "{\"registry\":");
    for words in [&["config"][..], &["init"], &["daemon", "start"]] {
        let error = home.json(words).error();
        assert_eq!(error["code"], "invalid_argument", "{words:?}");
        assert!(error["message"].as_str().unwrap().contains("config.json is corrupt"), "{error}");
    }
    assert_eq!(fs::read_to_string(home.file("config.json")).unwrap(), "{\"registry\":");
}

#[test]
fn an_unknown_key_in_the_file_is_a_warning() {
    let home = Home::new();
    home.write("config.json", "{\"colour\": \"red\"}");
    let ran = home.run(&["config"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("unknown key \"colour\" is ignored"), "{ran:?}");
}

#[test]
fn a_vendor_key_is_kept_with_a_notice() {
    let home = Home::new();
    let ran = home.run(&["config", "--set", "telemetry_url=https://example.org/t"]);
    assert_eq!(ran.code, 0);
    assert!(ran.stderr.contains("notice: telemetry_url is kept in the file; it has no effect"), "{ran:?}");
    assert_eq!(home.config()["telemetry_url"], "https://example.org/t");
}
