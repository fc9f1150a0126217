//! `prefer-direct`, `sign-request` and `verify-request`.

use super::reach::daemon_error;
use crate::args::{Args, Flag, Run, Spec, Tier};
use crate::error::{CliError, CliResult, Exit};
use crate::names::Peer;
use crate::output::{Ctx, json as out};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

/// Largest body that is sent to the daemon to be hashed, bytes; it travels as base64 in one frame.
const MAX_BODY: usize = 700 * 1024;

pub const COMMANDS: &[Spec] = &[
    Spec {
        name: "prefer-direct",
        about: "look for a direct path to a peer now, with all its addresses asked for anew",
        args: &["<peer>"],
        flags: &[],
        returns: "node_id, had_tunnel, was_relay_active, was_relay_pinned, pila_pushed, resolve_error",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(prefer_direct(ctx, args))),
    },
    Spec {
        name: "sign-request",
        about: "sign a request to a service with this node's key",
        args: &[],
        flags: &[
            Flag::value("audience", "A", "whom the request is for"),
            Flag::value("body", "S", "the request's body"),
            Flag::value("body-file", "F", "file with the body"),
            Flag::value("body-hash", "HEX", "SHA-256 of the body, 64 hex digits"),
        ],
        returns: "address, envelope, signature",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(sign(ctx, args))),
    },
    Spec {
        name: "verify-request",
        about: "check a signed request; exit 1 if it is not valid",
        args: &[],
        flags: &[
            Flag::value("envelope", "E", "the envelope"),
            Flag::value("signature", "B64", "its signature"),
            Flag::switch("standing", "also tell whether the signer is known and online"),
            Flag::value("max-skew", "S", "seconds the envelope's time may differ (300)"),
        ],
        returns: "valid, reason | address, node_id, trusted, verified_via, network_member, …",
        tier: Tier::Core,
        run: Run::Async(|ctx, args| Box::pin(verify(ctx, args))),
    },
];

async fn prefer_direct(ctx: &Ctx, args: &Args) -> CliResult {
    let client = ctx.client().await?;
    let node = Peer::resolve_node(ctx, &client, args.required(0)).await?;
    ctx.emit_data(client.prefer_direct(node).await.map_err(daemon_error("prefer_direct"))?)
}

async fn sign(ctx: &Ctx, args: &Args) -> CliResult {
    let Some(audience) = args.value("audience") else {
        return Err(CliError::invalid("--audience is required"));
    };
    let forms = ["body", "body-file", "body-hash"];
    if forms.iter().filter(|form| args.given(form)).count() != 1 {
        return Err(CliError::invalid("give exactly one of --body, --body-file and --body-hash"));
    }
    let mut request = json!({"audience": audience});
    if let Some(hash) = args.value("body-hash") {
        request["body_hash"] = json!(hash);
    } else {
        let body = match args.value("body-file") {
            Some(path) => std::fs::read(path).map_err(|e| CliError::io(path, &e))?,
            None => args.value("body").unwrap_or_default().as_bytes().to_vec(),
        };
        if body.len() > MAX_BODY {
            return Err(CliError::invalid(format!("body of {} bytes is over {MAX_BODY}", body.len()))
                .hint("hash it yourself: --body-hash $(sha256sum FILE | cut -d' ' -f1)"));
        }
        request["body_b64"] = json!(STANDARD.encode(body));
    }
    let mut data =
        ctx.client().await?.sign_envelope(&request).await.map_err(daemon_error("sign_envelope"))?;
    if let Some(object) = data.as_object_mut() {
        object.remove("type");
    }
    ctx.emit_data(data)
}

async fn verify(ctx: &Ctx, args: &Args) -> CliResult {
    let (Some(envelope), Some(signature)) = (args.value("envelope"), args.value("signature")) else {
        return Err(CliError::invalid("--envelope and --signature are required"));
    };
    let request = json!({
        "envelope": envelope,
        "signature": signature,
        "max_skew_secs": args.int("max-skew", 300)?,
        "check_standing": args.on("standing"),
    });
    let data =
        ctx.client().await?.verify_envelope(&request).await.map_err(daemon_error("verify_envelope"))?;
    let exit = if data["valid"] == true { Exit::OK } else { Exit::NEGATIVE };
    let text = out::pretty(&data);
    ctx.emit_as(data, |_| text, exit)
}
