//! Reading lists out of JSON answers, and how many rows a command shows.

use crate::args::Args;
use crate::error::CliError;
use crate::output::Ctx;
use serde_json::Value;

/// A number of a JSON object; 0 if it is missing, as in answers of older daemons.
pub fn number(object: &Value, key: &str) -> u64 {
    let value = &object[key];
    value.as_u64().or_else(|| value.as_f64().map(|f| f.max(0.0) as u64)).unwrap_or(0)
}

/// A list of a JSON object; empty if it is missing or null.
pub fn list<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object[key].as_array().map_or(&[], Vec::as_slice)
}

/// As [`list`], owned.
pub fn rows(object: &Value, key: &str) -> Vec<Value> {
    list(object, key).to_vec()
}

/// `--limit`: how many rows are shown. 0 means all; without the flag `default` in text mode and all in JSON mode.
pub fn row_limit(ctx: &Ctx, args: &Args, default: u64) -> Result<usize, CliError> {
    let limit = args.int("limit", if ctx.json { 0 } else { default })?;
    Ok(if limit == 0 { usize::MAX } else { usize::try_from(limit).unwrap_or(usize::MAX) })
}
