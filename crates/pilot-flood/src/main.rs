//! `pilot-flood KIND --name value …`: one bounded job of `scripts/flood.py`, which runs them in network namespaces of
//! its own. Prints one JSON object and ends by itself after `--secs`.
//!
//! | kind | what |
//! |---|---|
//! | `pila`, `discover` | forged key exchanges or Discovers from spoofed addresses, as fast as one thread can (needs root) |
//! | `syn` | connection requests inside a tunnel of a registered node, as fast as one thread can |
//! | `connect` | TCP connections from many addresses, as fast as one thread can, the newest held |
//! | `sink` | a UDP socket nobody reads and a TCP listener that closes at once: what floods are compared against |
//! | `receive`, `send` | a stream at a given rate through two daemons' local sockets |
//! | `newcomer` | fresh nodes that register and reach a peer's echo port, one after the other |

mod connect;
mod options;
mod peer;
mod raw;
mod sink;
mod stream;
mod syn;

use options::Options;
use serde_json::Value;

/// What a job says: its result, or why there is none.
type Outcome = Result<Value, String>;

fn main() -> std::process::ExitCode {
    let mut args = std::env::args().skip(1);
    let kind = args.next().unwrap_or_default();
    let outcome = Options::parse(args).and_then(|options| match kind.as_str() {
        "pila" => raw::flood(&options, raw::Kind::Pila),
        "discover" => raw::flood(&options, raw::Kind::Discover),
        "syn" => with_runtime(syn::flood(&options)),
        "connect" => connect::flood(&options),
        "sink" => sink::run(&options),
        "receive" => with_runtime(stream::receive(&options)),
        "send" => with_runtime(stream::send(&options)),
        "newcomer" => with_runtime(peer::newcomers(&options)),
        other => Err(format!("unknown kind {other:?}; see the first lines of src/main.rs")),
    });
    match outcome {
        Ok(result) => {
            println!("{result}");
            std::process::ExitCode::SUCCESS
        }
        Err(cause) => {
            eprintln!("pilot-flood: {cause}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn with_runtime(job: impl Future<Output = Outcome>) -> Outcome {
    tokio::runtime::Runtime::new().map_err(|e| format!("runtime: {e}"))?.block_on(job)
}
