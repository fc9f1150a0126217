//! `version`, `context` and `quickstart`: what this program says about itself.

use super::{VERSION, all, names};
use crate::args::{Args, Run, Spec, Tier};
use crate::error::{CliError, CliResult, Code};
use crate::output::Ctx;
use serde_json::{Map, Value, json};

/// Version of the catalogue's layout.
const CATALOGUE_VERSION: &str = "1.4";

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "version",
        about: "print the version",
        args: &[],
        flags: &[],
        returns: "version",
        tier: Tier::Core,
        run: Run::Sync(version),
    },
    Spec {
        name: "context",
        about: "machine-readable catalogue of all commands",
        args: &["[command...]"],
        flags: &[],
        returns: "version, commands{args[], description, returns}, extras, error_codes, environment, global_flags, \
                  config_file",
        tier: Tier::Core,
        run: Run::Sync(context),
    },
    Spec {
        name: "quickstart",
        about: "the first steps",
        args: &[],
        flags: &[],
        returns: "steps[]{title, commands[]}",
        tier: Tier::Core,
        run: Run::Sync(quickstart),
    },
    Spec {
        name: "_gateway-run",
        about: "maps peers to local addresses: not in this version",
        args: &[],
        flags: &[],
        returns: "",
        tier: Tier::Hidden,
        run: Run::Sync(no_gateway),
    },
];

fn no_gateway(_: &Ctx, _: &Args) -> CliResult {
    Err(CliError::new(Code::NotImplemented, "the gateway is not in this version")
        .hint("reach a peer's port with: pilotctl connect <peer> <port>"))
}

fn version(ctx: &Ctx, _: &Args) -> CliResult {
    ctx.emit(json!({"version": VERSION}), |_| VERSION.to_owned())
}

const ENVIRONMENT: &[(&str, &str)] = &[
    ("PILOT_HOME", "directory that holds .pilot, instead of $HOME"),
    ("PILOT_SOCKET", "the daemon's socket"),
    ("PILOT_REGISTRY", "host:port of the registry"),
    ("PILOT_BEACON", "host:port of the beacon, or several"),
    ("PILOT_REGISTRY_TRUST", "pinned or system: how the registry's certificate is trusted"),
    ("PILOT_REGISTRY_FINGERPRINT", "SHA-256 of the registry's certificate"),
    ("PILOT_ADMIN_TOKEN", "token for operator commands"),
    ("NO_COLOR, PILOT_NO_COLOR", "no colours"),
];

fn entries(tiers: &[Tier]) -> Value {
    let specs = all().filter(|s| tiers.contains(&s.tier));
    Value::Object(specs.map(|s| (s.name.to_owned(), s.catalogue_entry())).collect::<Map<_, _>>())
}

fn context(ctx: &Ctx, args: &Args) -> CliResult {
    let words = args.rest(0).join(" ");
    if !words.is_empty() {
        let spec = all().find(|s| s.name == words).ok_or_else(|| {
            let valid = names().join(", ");
            CliError::not_found(format!("unknown command {words:?} — valid: {valid}"))
        })?;
        return ctx.emit_data(spec.catalogue_entry());
    }
    let pairs = |list: &[(&str, &str)]| -> Map<String, Value> {
        list.iter().map(|(name, about)| ((*name).to_owned(), json!(about))).collect()
    };
    let codes: Vec<(&str, &str)> = Code::ALL.iter().map(|(code, about)| (code.as_str(), *about)).collect();
    ctx.emit_data(json!({
        "version": CATALOGUE_VERSION,
        "note": "made from the table that parses the command line",
        "commands": entries(&[Tier::Core, Tier::Operator]),
        "extras": entries(&[Tier::Extras]),
        "error_codes": pairs(&codes),
        "environment": pairs(ENVIRONMENT),
        "global_flags": {
            "--json": "one line of JSON on stdout; errors as JSON on stderr",
            "--verbose": "say more on stderr",
            "--help": "help on a command",
        },
        "config_file": ctx.home().join("config.json"),
    }))
}

const STEPS: &[(&str, &[&str])] = &[
    ("Start a node", &["pilotctl daemon start --hostname my-agent"]),
    (
        "Trust a peer",
        &["pilotctl handshake other-agent \"why\"", "pilotctl approve my-agent   (on the other side)"],
    ),
    (
        "Talk",
        &["pilotctl ping other-agent", "pilotctl send-message other-agent --data hello", "pilotctl inbox"],
    ),
    ("See it all at work on this machine", &["pilotctl demo"]),
];

fn quickstart(ctx: &Ctx, _: &Args) -> CliResult {
    let steps: Vec<Value> =
        STEPS.iter().map(|(title, commands)| json!({"title": title, "commands": commands})).collect();
    ctx.emit(json!({"steps": steps}), |style| {
        let mut out = String::new();
        for (number, (title, commands)) in STEPS.iter().enumerate() {
            out.push_str(&format!("{}. {}\n", number + 1, style.bold(title)));
            for command in *commands {
                out.push_str(&format!("   {}\n", style.cyan(command)));
            }
        }
        out
    })
}
