//! The network laboratory from a terminal: make one, look around on its hosts, run the grid of NATs.

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use pilot_netlab::control::{self, Door};
use pilot_netlab::{Host, Lab, Link, Place, Site};
use std::io;
use std::process::ExitCode;
use std::time::Duration;

/// Places of one laboratory: they are named `a` to `z`.
const PLACES_MAX: usize = 26;

pub fn command() -> Command {
    let name = Arg::new("name").long("name").default_value("lab").help("Name of the laboratory");
    let up = Command::new("up")
        .about(
            "Make a laboratory with one place per site, named a, b, c, ..., and a public host; until Ctrl-C",
        )
        .arg(
            Arg::new("sites")
                .required(true)
                .num_args(1..=PLACES_MAX)
                .value_parser(|s: &str| s.parse::<Site>())
                .value_name("SITE")
                .help("Kinds of places; see: netlab list"),
        )
        .arg(number(
            "delay",
            "MS",
            "0",
            "Delay of each place's way to the Internet, one way, in milliseconds",
        ))
        .arg(number("jitter", "MS", "0", "Up to this much is added to the delay, in milliseconds"))
        .arg(number("rate", "MBIT", "0", "Limit of each direction in Mbit/s; 0: none"))
        .arg(percent("loss", "Packets lost in each direction, in percent"))
        .arg(percent("duplicate", "Packets delivered twice, in percent"))
        .arg(percent("reorder", "Packets held back by 5 ms, in percent"))
        .arg(number("mtu", "BYTES", "1500", "Largest packet on the way to the Internet"))
        .arg(
            Arg::new("black-hole")
                .long("black-hole")
                .action(ArgAction::SetTrue)
                .help("No ICMP about larger ones"),
        )
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_parser(value_parser!(u64))
                .help("Seed of all random decisions"),
        )
        .arg(name.clone());
    let exec = Command::new("exec")
        .about("Run a command on a host of a laboratory that is up")
        .arg(name)
        .arg(Arg::new("host").required(true).help("Name of the host"))
        .arg(Arg::new("command").required(true).num_args(1..).last(true).help("The command, after --"));
    Command::new("netlab")
        .about("Hosts, NATs, firewalls and links in network namespaces (needs root)")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("list").about("List the kinds of places"))
        .subcommand(up)
        .subcommand(exec)
        .subcommand(
            Command::new("grid").about("Which NATs connect our daemons; writes docs/nat-grid.md").arg(
                Arg::new("reference").long("reference").action(ArgAction::SetTrue).help(
                    "With a reference 1.18.0 on one side (in PILOT_REFERENCE_VENV); writes docs/nat-grid-reference.md",
                ),
            ),
        )
}

fn number(name: &'static str, unit: &'static str, default: &'static str, help: &'static str) -> Arg {
    let arg = Arg::new(name).long(name).value_name(unit).default_value(default);
    arg.value_parser(value_parser!(u64)).help(help)
}

fn percent(name: &'static str, help: &'static str) -> Arg {
    let parse = |s: &str| match s.parse::<f64>() {
        Ok(p) if (0.0..=100.0).contains(&p) => Ok(p),
        _ => Err("a number from 0 to 100 is needed"),
    };
    Arg::new(name).long(name).value_name("PERCENT").default_value("0").value_parser(parse).help(help)
}

pub fn run(matches: &ArgMatches) -> io::Result<ExitCode> {
    match matches.subcommand() {
        Some(("list", _)) => {
            for site in Site::ALL {
                println!("{:<20} {}", site.name(), site.description());
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(("up", m)) => up(m),
        Some(("exec", m)) => exec(m),
        Some(("grid", m)) => grid(m.get_flag("reference")),
        _ => Ok(ExitCode::FAILURE),
    }
}

fn up(m: &ArgMatches) -> io::Result<ExitCode> {
    let lab_name = name(m);
    let door = Door::open(lab_name)?;
    let lab = match m.get_one::<u64>("seed") {
        Some(seed) => Lab::with_seed(*seed)?,
        None => Lab::new()?,
    };
    let link = link(m);
    let mut hosts = vec![lab.host("public").on(lab.internet(), Link::new()).start()?];
    let mut places = Vec::new();
    for (site, letter) in m.get_many::<Site>("sites").into_iter().flatten().zip(b'a'..=b'z') {
        let name = char::from(letter).to_string();
        let place = Place::new(&lab, *site, &name, letter, link)?;
        hosts.push(place.host.clone());
        hosts.extend(place.mapping_router.as_ref().map(|r| r.host().clone()));
        hosts.extend(place.proxy.as_ref().map(|p| p.host().clone()));
        places.push(place);
    }
    print_hosts(&hosts, &places);
    println!(
        "run commands with: cargo xtask netlab exec --name {lab_name} <host> -- <command>; end with Ctrl-C"
    );
    door.serve(&hosts);
    Ok(ExitCode::SUCCESS)
}

fn link(m: &ArgMatches) -> Link {
    let number = |name| m.get_one::<u64>(name).copied().unwrap_or_default();
    let share = |name| m.get_one::<f64>(name).copied().unwrap_or_default() / 100.0;
    let mut link = Link::new()
        .delay(Duration::from_millis(number("delay")))
        .jitter(Duration::from_millis(number("jitter")))
        .loss(share("loss"))
        .duplicate(share("duplicate"))
        .reorder(share("reorder"), Duration::from_millis(5));
    if number("rate") > 0 {
        link = link.mbit(number("rate"));
    }
    let mtu = number("mtu") as usize;
    if m.get_flag("black-hole") { link.black_hole_mtu(mtu) } else { link.mtu(mtu) }
}

fn print_hosts(hosts: &[Host], places: &[Place]) {
    for host in hosts {
        let addrs: Vec<_> = host.addrs().iter().map(ToString::to_string).collect();
        let place = places.iter().find(|p| p.host.name() == host.name());
        let what = place.map_or("", |p| p.site.description());
        println!("{:<12} {:<45} {what}", host.name(), addrs.join(" "));
    }
    for proxy in places.iter().filter_map(|p| p.proxy.as_ref()) {
        let (user, password) = pilot_netlab::PROXY_CREDENTIALS;
        println!("proxy        http://{user}:{password}@{}", proxy.addr());
    }
}

fn exec(m: &ArgMatches) -> io::Result<ExitCode> {
    let host = m.get_one::<String>("host").map_or("", String::as_str);
    let mut words = m.get_many::<String>("command").into_iter().flatten();
    let program = words.next().map_or("sh", String::as_str);
    let mut command = control::command_on(name(m), host, program)?;
    let status = command.args(words).status().map_err(|e| io::Error::other(format!("{program}: {e}")))?;
    // 128 as the shell does it, if a signal ended it.
    Ok(ExitCode::from(status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(128)))
}

/// The test that measures the grid, and writes it down.
fn grid(reference: bool) -> io::Result<ExitCode> {
    let test = if reference {
        "kinds::the_grid_with_a_reference_written_down"
    } else {
        "kinds::the_grid_written_down"
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command.args(["test", "--package", "pilotctl", "--test", "grid", "--"]);
    command.args(["--ignored", "--exact", test, "--nocapture"]);
    Ok(if command.status()?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn name(m: &ArgMatches) -> &str {
    m.get_one::<String>("name").map_or("lab", String::as_str)
}
