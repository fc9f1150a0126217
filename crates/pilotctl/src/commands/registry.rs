//! One request on a registry connection of our own, for what the daemon does not pass on (spec 05 section 2.1).

use super::text::safe;
use crate::error::{CliError, Code};
use crate::output::Ctx;
use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Registry used when none is configured (spec 08 section 1.8).
const DEFAULT: &str = "34.71.57.205:9000";
/// Largest answer taken, bytes. Answers to the requests made here are far smaller.
const MAX_ANSWER: usize = 8 << 20;
/// Time limit of connecting and asking together.
const LIMIT: Duration = Duration::from_secs(10);

/// `host:port` of the registry: environment, configuration file, default.
fn address(ctx: &Ctx) -> Result<String, CliError> {
    if let Some(address) = ctx.env().get("PILOT_REGISTRY") {
        return Ok(address.to_owned());
    }
    Ok(ctx.config()?.string("registry").unwrap_or_else(|| DEFAULT.to_owned()))
}

/// Sends a request and returns the answer; a refusal is an error with the registry's words.
pub async fn request(ctx: &Ctx, request: Value) -> Result<Value, CliError> {
    let kind = request["type"].as_str().unwrap_or("request").to_owned();
    let address = address(ctx)?;
    if ctx.config()?.string("registry_tls").as_deref() == Some("true") {
        return Err(CliError::new(
            Code::NotSupported,
            format!("{kind}: the registry at {address} speaks TLS"),
        )
        .hint("only the daemon speaks TLS to a registry"));
    }
    let failed = |why: String| {
        CliError::connection(format!("{kind}: registry {address}: {why}"))
            .hint("set PILOT_REGISTRY, or: pilotctl config --set registry=HOST:PORT")
    };
    let answer = match tokio::time::timeout(LIMIT, exchange(&address, &request)).await {
        Ok(answer) => answer.map_err(|e| failed(e.to_string()))?,
        Err(_) => return Err(failed(format!("no answer within {}s", LIMIT.as_secs()))),
    };
    match answer["error"].as_str() {
        Some(refusal) if refusal.contains("not found") => {
            Err(CliError::not_found(format!("{kind}: registry: {}", safe(refusal))))
        }
        Some(refusal) => Err(CliError::connection(format!("{kind}: registry: {}", safe(refusal)))),
        None => Ok(answer),
    }
}

async fn exchange(address: &str, request: &Value) -> std::io::Result<Value> {
    let mut socket = TcpStream::connect(address).await?;
    let body = serde_json::to_vec(request)?;
    let mut frame = (body.len() as u32).to_be_bytes().to_vec();
    frame.extend_from_slice(&body);
    socket.write_all(&frame).await?;
    let length = socket.read_u32().await? as usize;
    if length > MAX_ANSWER {
        return Err(std::io::Error::other(format!("an answer of {length} bytes is over {MAX_ANSWER}")));
    }
    let mut answer = Vec::new();
    // Grows with what arrives, not with what was declared.
    (&mut socket).take(length as u64).read_to_end(&mut answer).await?;
    if answer.len() < length {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}
