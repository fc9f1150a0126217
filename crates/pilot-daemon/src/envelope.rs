//! The text of a request-signature envelope (spec 07 section 16):
//! `pilot-req-v1|<addr>|<ts>|<nonce>|<bodyhash>|<audience>`.

use pilot_proto::Addr;
use std::fmt;

const DOMAIN: &str = "pilot-req-v1";
/// Most characters of an audience.
const AUDIENCE_MAX: usize = 64;

/// An envelope with all fields in their one valid form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) addr: Addr,
    /// Unix seconds of the signer's clock.
    pub(crate) unix_secs: i64,
    nonce: String,
    body_hash: String,
    audience: String,
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Addr { network, node } = self.addr;
        let Envelope { unix_secs, nonce, body_hash, audience, .. } = self;
        write!(f, "{DOMAIN}|{network:04x}{node:08x}|{unix_secs}|{nonce}|{body_hash}|{audience}")
    }
}

impl Envelope {
    /// Checks the parts. The error texts are those of the reference.
    pub(crate) fn new(
        addr: Addr,
        unix_secs: i64,
        nonce: &str,
        body_hash: &str,
        audience: &str,
    ) -> Result<Envelope, String> {
        if !is_hex(nonce, 16) {
            return Err("reqsig: nonce must be 16 lowercase hex chars".into());
        }
        if !is_hex(body_hash, 64) {
            return Err("reqsig: body hash must be 64 lowercase hex chars".into());
        }
        if audience.is_empty() || audience.len() > AUDIENCE_MAX {
            return Err("reqsig: audience must be 1-64 chars".into());
        }
        if !audience.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-')) {
            return Err("reqsig: audience must match [a-z0-9.-]".into());
        }
        let [nonce, body_hash, audience] = [nonce, body_hash, audience].map(str::to_owned);
        Ok(Envelope { addr, unix_secs, nonce, body_hash, audience })
    }

    /// Takes a text apart. Only the exact text this type writes is accepted.
    pub(crate) fn parse(text: &str) -> Result<Envelope, String> {
        let fields: Vec<&str> = text.split('|').collect();
        let [domain, addr, secs, nonce, body_hash, audience] = fields[..] else {
            return Err(format!("reqsig: want 6 fields, got {}", fields.len()));
        };
        if domain != DOMAIN {
            return Err(format!("reqsig: bad domain {domain:?}"));
        }
        if !is_hex(addr, 12) {
            return Err("reqsig: address must be 12 lowercase hex chars".into());
        }
        let number =
            |digits: &str| u32::from_str_radix(digits, 16).map_err(|e| format!("reqsig: address: {e}"));
        let addr = Addr { network: (number(&addr[..4])? & 0xFFFF) as u16, node: number(&addr[4..])? };
        let secs = secs.parse().map_err(|e| format!("reqsig: timestamp: {e}"))?;
        let envelope = Envelope::new(addr, secs, nonce, body_hash, audience)?;
        if secs < 0 || envelope.to_string() != text {
            return Err("reqsig: non-canonical encoding".into());
        }
        Ok(envelope)
    }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Whole seconds as `1h2m3s`, leading zero units left out.
pub(crate) fn duration_text(secs: u64) -> String {
    let (h, m, s) = (secs / 3600, secs / 60 % 60, secs % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, _) => format!("{m}m{s}s"),
        _ => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "pilot-req-v1|000000000002|1795217316|afd07485b96743a4|2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824|svc.example";

    #[test]
    fn a_recorded_envelope_is_read_and_written_unchanged() {
        let envelope = Envelope::parse(TEXT).unwrap();
        assert_eq!((envelope.addr, envelope.unix_secs), (Addr::backbone(2), 1_795_217_316));
        assert_eq!(envelope.to_string(), TEXT);
    }

    #[test]
    fn every_deviation_is_refused_with_its_reason() {
        for (from, to, reason) in [
            ("|svc.example", "", "reqsig: want 6 fields, got 5"),
            ("pilot-req-v1", "pilot-req-v2", "reqsig: bad domain \"pilot-req-v2\""),
            ("000000000002", "00000000002", "reqsig: address must be 12 lowercase hex chars"),
            ("000000000002", "00000000000A", "reqsig: address must be 12 lowercase hex chars"),
            ("1795217316", "x", "reqsig: timestamp: invalid digit found in string"),
            ("1795217316", "01795217316", "reqsig: non-canonical encoding"),
            ("1795217316", "+1795217316", "reqsig: non-canonical encoding"),
            ("1795217316", "-1795217316", "reqsig: non-canonical encoding"),
            ("afd07485", "AFD07485", "reqsig: nonce must be 16 lowercase hex chars"),
            ("2cf24dba", "2cf24db", "reqsig: body hash must be 64 lowercase hex chars"),
            ("svc.example", "", "reqsig: audience must be 1-64 chars"),
            ("svc.example", "svc_example", "reqsig: audience must match [a-z0-9.-]"),
        ] {
            assert_eq!(Envelope::parse(&TEXT.replace(from, to)).unwrap_err(), reason);
        }
        assert_eq!(Envelope::parse("garbage").unwrap_err(), "reqsig: want 6 fields, got 1");
    }

    #[test]
    fn durations_read_as_in_the_reference() {
        for (secs, text) in
            [(30, "30s"), (300, "5m0s"), (90, "1m30s"), (3600, "1h0m0s"), (86_399, "23h59m59s")]
        {
            assert_eq!(duration_text(secs), text);
        }
    }
}
