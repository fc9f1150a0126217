//! `daemon` and `rendezvous`: processes that start, are found, and stop (spec 08 section 1.14).

use crate::pair::until;
use crate::support::Home;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The process runs; one that has ended and waits to be reaped does not.
fn alive(pid: u64) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    !state.starts_with(['Z', 'X'])
}

#[test]
fn a_new_home_starts_alone_with_a_local_rendezvous_that_outlives_the_daemon() {
    let home = Home::new();
    let ran = home.run(&["daemon", "start", "--hostname", "my-agent", "--tags", "mcp,finance"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("Daemon running (pid "), "{ran:?}");
    assert_eq!(
        lines[1..],
        [
            "  Address:  0:0000.0000.0001",
            "  Hostname: my-agent",
            "  Tags:     mcp, finance",
            "  Network:  udp (auto)",
            &format!("  Socket:   {}", home.path().join("pilot.sock").display()),
            &format!("  Logs:     {}", home.file("pilot.log").display()),
        ]
    );
    assert!(ran.stderr.contains("started the local rendezvous at 127.0.0.1:"), "{ran:?}");
    assert!(ran.stderr.contains("pilotctl daemon start --registry HOST:PORT"), "{ran:?}");

    let before = home.json(&["rendezvous", "status"]).data();
    assert_eq!(before["running"], true);
    let stopped = home.json(&["daemon", "stop"]).data();
    assert!(!alive(stopped["pid"].as_u64().unwrap()));
    assert_eq!(home.json(&["rendezvous", "status"]).data()["pid"], before["pid"], "the rendezvous stays");

    let again = home.json(&["daemon", "start"]).data();
    assert_eq!(again["address"], "0:0000.0000.0001", "same identity, same address");
    assert_eq!(again["rendezvous"]["registry_addr"], before["registry_addr"]);
    assert_eq!(home.config()["registry"], "local", "the choice is remembered");
}

#[test]
fn two_homes_of_one_user_share_the_local_rendezvous() {
    let home = Home::new();
    let (other, socket) = (home.path().join("other"), home.path().join("other.sock"));
    let env = [("PILOT_HOME", other.to_str().unwrap()), ("PILOT_SOCKET", socket.to_str().unwrap())];
    let children: Vec<Child> = [&[][..], &env[..]]
        .iter()
        .map(|env| {
            let mut command = home.command(&["--json", "daemon", "start"]);
            command.envs(env.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().expect("the binary runs")
        })
        .collect();
    let data: Vec<serde_json::Value> = children
        .into_iter()
        .map(|child| {
            let out = child.wait_with_output().expect("it ends");
            assert!(out.status.success(), "{out:?}");
            serde_json::from_slice::<serde_json::Value>(&out.stdout).expect("JSON")["data"].clone()
        })
        .collect();
    let stopped = home.run_with(&["daemon", "stop"], &env);
    assert_eq!(stopped.code, 0, "{stopped:?}");
    assert_eq!(data[0]["rendezvous"], data[1]["rendezvous"], "one rendezvous, though both started at once");
    assert_ne!(data[0]["node_id"], data[1]["node_id"]);
}

#[test]
fn status_and_stop_tell_whether_a_daemon_runs() {
    let home = Home::new();
    let stopped = home.json(&["daemon", "status"]).data_of(1);
    assert_eq!((&stopped["running"], &stopped["responsive"]), (&false.into(), &false.into()));
    assert_eq!(stopped["pid"], 0);
    assert_eq!(home.run(&["daemon", "status", "--check"]).code, 1);
    assert_eq!(home.json(&["daemon", "stop"]).error()["message"], "daemon is not running");

    let started = home.json(&["daemon", "start"]).data();
    let running = home.json(&["daemon", "status"]).data();
    assert_eq!(running["pid"], started["pid"]);
    assert_eq!(running["address"], started["address"]);
    assert_eq!((&running["running"], &running["responsive"]), (&true.into(), &true.into()));
    let check = home.run(&["daemon", "status", "--check"]);
    assert_eq!((check.code, check.stdout.as_str(), check.stderr.as_str()), (0, "", ""));

    let begun = Instant::now();
    let stopped = home.json(&["daemon", "stop"]).data();
    assert_eq!(stopped, serde_json::json!({"pid": started["pid"]}), "in order, not forced");
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert!(!home.file("pilot.pid").exists() && !home.path().join("pilot.sock").exists());
}

#[test]
fn a_second_daemon_is_refused_by_home_and_by_socket() {
    let home = Home::new();
    let pid = home.json(&["daemon", "start"]).data()["pid"].clone();
    let same_home = home.json(&["daemon", "start"]).error();
    assert_eq!(same_home["code"], "already_exists");
    assert_eq!(same_home["message"], format!("daemon is already running (pid {pid})"));
    let other = home.path().join("other");
    let same_socket =
        home.run_with(&["--json", "daemon", "start"], &[("PILOT_HOME", other.to_str().unwrap())]);
    let same_socket = same_socket.error();
    let socket = home.path().join("pilot.sock");
    assert_eq!(same_socket["code"], "already_exists");
    assert_eq!(
        same_socket["message"],
        format!("daemon is already running (socket {} is active)", socket.display())
    );
    assert!(!other.join(".pilot/pilot.pid").exists(), "no pid file of a daemon that never was");
    let foreground = home.json(&["daemon", "start", "--foreground"]).error();
    assert_eq!(foreground["message"], format!("daemon is already running (pid {pid})"));
    assert_eq!(home.json(&["daemon", "status"]).data()["pid"], pid, "the first one is untouched");
}

#[test]
fn what_is_wrong_is_said_before_anything_is_started() {
    let home = Home::new();
    let refused =
        |args: &[&str]| home.json(&[&["daemon", "start"], args].concat()).error()["message"].clone();
    assert_eq!(refused(&["--wait", "abc"]), "invalid duration for --wait: time: invalid duration \"abc\"");
    assert_eq!(refused(&["--registry", "nowhere"]), "--registry: registry must be a host:port address");
    assert_eq!(refused(&["--email", "nobody"]), "invalid email: email address must contain @");
    assert_eq!(
        refused(&["--transport", "tcp"]),
        "--transport: invalid transport \"tcp\": must be 'udp', 'compat' or 'auto'"
    );
    assert_eq!(
        refused(&["--proxy", "socks5://user:s3cret@proxy:1"]),
        "--proxy: proxy: invalid proxy URL: socks5:// is no HTTP proxy; expected http://[user:password@]host:port, auto \
         or off"
    );
    let pinned = refused(&["--tls-trust", "pinned"]);
    assert!(pinned.as_str().unwrap().starts_with("tls_trust pinned needs registry_fingerprint"), "{pinned}");
    assert!(
        refused(&["--tags", "Big"]).as_str().unwrap().starts_with("--tags: tag \"Big\" must be lowercase")
    );
    assert!(!home.file("pilot.pid").exists() && !home.file("pilot.log").exists());
    assert_eq!(home.json(&["rendezvous", "status"]).data_of(1)["running"], false);
}

#[test]
fn an_identity_without_a_registry_is_not_guessed_about() {
    let home = Home::new();
    home.json(&["daemon", "start"]).data();
    home.json(&["daemon", "stop"]).data();
    fs::remove_file(home.file("config.json")).unwrap();
    let error = home.json(&["daemon", "start"]).error();
    assert!(error["message"].as_str().unwrap().contains("which registry it is registered at"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--registry HOST:PORT"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("--local"), "{error}");
    home.json(&["daemon", "start", "--local"]).data();
}

#[test]
fn a_daemon_that_cannot_start_says_why_and_leaves_nothing() {
    let home = Home::new();
    home.write("identity.json", "{\"private_key\": \"broken\"}");
    let error = home.json(&["daemon", "start", "--local"]).error();
    assert!(error["message"].as_str().unwrap().contains("identity"), "{error}");
    assert!(!home.file("pilot.pid").exists());
    assert_eq!(home.json(&["daemon", "status"]).data_of(1)["running"], false);
}

#[test]
fn a_registry_that_does_not_answer_is_an_error_and_no_daemon_stays() {
    let home = Home::new();
    // Listens and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = silent.local_addr().unwrap().to_string();
    let begun = Instant::now();
    let error = home.json(&["daemon", "start", "--registry", &registry, "--wait", "300ms"]).error();
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(error["code"], "timeout");
    assert!(error["hint"].as_str().unwrap().contains(&registry), "{error}");
    assert_eq!(home.json(&["daemon", "stop"]).error()["code"], "not_running");
}

#[test]
fn a_registry_that_refuses_connections_is_named_with_the_cause() {
    let home = Home::new();
    let registry = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let error = home.json(&["daemon", "start", "--registry", &registry]).error();
    let cause = format!("registry {registry} cannot be reached: connection refused");
    assert_eq!(error["message"], format!("daemon start: {cause}"));
    let log = fs::read_to_string(home.file("pilot.log")).unwrap();
    let retries =
        log.lines().filter(|l| l.contains("WARN") && l.contains(&cause) && l.contains("trying again in"));
    assert!(retries.count() > 0, "{log}");
}

#[test]
fn the_log_tells_of_a_registry_lost_and_found_again() {
    let (home, hub) = (Home::new(), Home::new());
    let start = |registry: &str, beacon: &str| {
        hub.json(&["rendezvous", "start", "--registry-addr", registry, "--beacon-addr", beacon]).data()
    };
    let at = start("127.0.0.1:0", "127.0.0.1:0");
    let (registry, beacon) = (at["registry_addr"].as_str().unwrap(), at["beacon_addr"].as_str().unwrap());
    home.json(&["daemon", "start", "--registry", registry, "--beacon", beacon]).data();
    let logged = |level: &str, text: &str| {
        let log = fs::read_to_string(home.file("pilot.log")).unwrap();
        log.lines().any(|l| l.contains(level) && l.contains(text) && l.contains(registry))
    };
    hub.json(&["rendezvous", "stop"]).data();
    until("the loss is logged", || logged("WARN", "the registry is lost"));
    start(registry, beacon);
    until("the return is logged", || logged("INFO", "the registry answers again"));
}

#[test]
fn a_stale_pid_file_is_no_daemon() {
    let home = Home::new();
    home.write("pilot.pid", "1");
    assert_eq!(home.json(&["daemon", "status"]).data_of(1)["running"], false);
    let error = home.json(&["daemon", "stop"]).error();
    assert_eq!(error["message"], "daemon is not running (cleaned up stale state)");
    assert!(!home.file("pilot.pid").exists());
}

#[test]
fn the_foreground_daemon_ends_in_order_on_sigterm_and_can_be_stopped_by_command() {
    let home = Home::new();
    home.json(&["rendezvous", "start", "--registry-addr", "127.0.0.1:0", "--beacon-addr", "127.0.0.1:0"])
        .data();
    let mut command = home.command(&["daemon", "start", "--foreground", "--local"]);
    let mut daemon = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while home.run(&["daemon", "status", "--check"]).code != 0 {
        assert!(Instant::now() < deadline, "the daemon never answered");
    }
    let hung_up = Command::new("kill").args(["-HUP", &daemon.id().to_string()]).status();
    assert!(hung_up.expect("kill runs").success());
    assert_eq!(home.run(&["daemon", "status", "--check"]).code, 0, "a hang-up ends nothing");
    let stopped = home.json(&["daemon", "stop"]).data();
    assert_eq!(stopped["pid"], daemon.id());
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
}

#[test]
fn vendor_flags_are_accepted_with_one_notice_each() {
    let home = Home::new();
    let ran = home.run(&["daemon", "start", "-no-skillinject", "-telemetry-url", "https://example.org"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let notices: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("notice: ")).collect();
    assert_eq!(notices.len(), 2, "{ran:?}");
    assert!(
        notices
            .iter()
            .all(|n| n.ends_with("belongs to a vendor service of the reference; it has no effect here"))
    );
}

#[test]
fn secrets_are_not_in_the_process_list() {
    let home = Home::new();
    let pid = home.json(&["daemon", "start", "--admin-token", "s3cret"]).data()["pid"].clone();
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let line = String::from_utf8_lossy(&line);
    assert!(line.starts_with("pilot-daemon\0"), "{line:?}");
    assert!(!line.contains("s3cret"), "{line:?}");
}

#[test]
fn rendezvous_start_status_and_stop() {
    let home = Home::new();
    let stopped = home.json(&["rendezvous", "status"]).data_of(1);
    assert_eq!((&stopped["running"], &stopped["pid"]), (&false.into(), &0.into()));
    let started = home
        .json(&["rendezvous", "start", "-registry-addr", "127.0.0.1:0", "-beacon-addr", "127.0.0.1:0"])
        .data();
    let status = home.json(&["rendezvous", "status"]).data();
    assert_eq!(status["registry_addr"], started["registry_addr"]);
    assert_eq!(status["pid"], started["pid"]);
    let error = home.json(&["rendezvous", "start"]).error();
    assert_eq!(error["message"], format!("rendezvous is already running (pid {})", started["pid"]));
    let text = home.run(&["rendezvous", "status"]).stdout;
    let join = format!("pilotctl daemon start --registry {}", started["registry_addr"].as_str().unwrap());
    assert!(text.contains(&join), "{text}");
    // A node says where it is, and sends a frame to one that is not there.
    let node = UdpSocket::bind("127.0.0.1:0").unwrap();
    let beacon = status["beacon_addr"].as_str().unwrap();
    node.send_to(&[1, 0, 0, 0, 7], beacon).unwrap();
    node.send_to(&[5, 0, 0, 0, 7, 0, 0, 0, 8, b'x'], beacon).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    let counters = loop {
        let counters = home.json(&["rendezvous", "status"]).data()["counters"].clone();
        if counters["relay_dropped"] == 1 {
            break counters;
        }
        assert!(Instant::now() < end, "{counters}");
    };
    assert_eq!((&counters["beacon_nodes"], &counters["compat_nodes"]), (&1.into(), &0.into()));
    for key in
        ["relayed", "relayed_bytes", "relay_limited", "relay_overrun", "relay_unsent", "compat_dropped"]
    {
        assert_eq!(counters[key], 0, "{key}");
    }
    for key in ["relayed", "relayed_bytes", "relay_lost", "requests"] {
        assert!(counters["per_second"][key].is_u64(), "{counters}");
    }
    let text = home.run(&["rendezvous", "status"]).stdout;
    assert!(text.contains("1 at the beacon, 0 by WebSocket\n"), "{text}");
    assert!(text.contains("\n  Lost:     1 unknown destination\n"), "{text}");
    let gone = home.json(&["rendezvous", "stop"]).data();
    assert_eq!(gone, serde_json::json!({"pid": started["pid"]}));
    assert_eq!(home.json(&["rendezvous", "stop"]).error()["code"], "not_running");
}

#[test]
fn a_taken_port_is_an_error_unless_free_ports_may_be_taken() {
    let home = Home::new();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (registry, beacon) = (tcp.local_addr().unwrap().to_string(), udp.local_addr().unwrap().to_string());
    let start = ["rendezvous", "start", "--registry-addr", &registry, "--beacon-addr", &beacon];
    let error = home.json(&start).error();
    assert_eq!(error["code"], "connection_failed");
    assert!(error["message"].as_str().unwrap().contains(&registry), "{error}");
    assert_eq!(home.json(&["rendezvous", "status"]).data_of(1)["running"], false);
    let started = home.json(&[&start[..], &["--free-ports"]].concat()).data();
    assert_ne!(started["registry_addr"], registry);
    assert_ne!(started["beacon_addr"], beacon);
}

#[test]
fn a_daemon_joins_a_tls_rendezvous_by_fingerprint_and_refuses_a_wrong_one() {
    let home = Home::new();
    let started = home
        .json(&["rendezvous", "start", "--tls", "--registry-addr=127.0.0.1:0", "--beacon-addr=127.0.0.1:0"])
        .data();
    let registry = started["registry_addr"].as_str().unwrap();
    let beacon = started["beacon_addr"].as_str().unwrap();
    let right = started["tls_fingerprint"].as_str().unwrap();
    let join = |fingerprint: &str| {
        let flags = ["--registry", registry, "--beacon", beacon, "--registry-fingerprint", fingerprint];
        home.json(&[&["daemon", "start", "--wait", "5s"], &flags[..]].concat())
    };
    let error = join(&"00".repeat(32)).error();
    assert!(["connection_failed", "timeout"].contains(&error["code"].as_str().unwrap()), "{error}");
    join(right).data();
}
