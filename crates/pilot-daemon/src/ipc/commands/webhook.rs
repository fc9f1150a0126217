//! SetWebhook (spec 07 section 12): the URL is checked and kept.

use crate::ipc::hub::Hub;
use crate::ipc::json::object;
use serde_json::Value;
use std::net::IpAddr;

/// Names of cloud metadata services, which must not be reachable through a hook.
const METADATA_HOSTS: [&str; 5] = [
    "metadata.google.internal",
    "metadata.google.com",
    "ec2.internal",
    "instance-data-service.ec2.internal",
    "metadata.azure.com",
];

pub(super) fn set(hub: &Hub, url: &str) -> Result<Value, String> {
    if !url.is_empty() {
        check(url)?;
    }
    hub.webhook.send_replace(url.to_owned());
    // `delivering` tells whether anything posts events to the URL.
    Ok(object([("webhook", url.into()), ("delivering", (hub.webhook.receiver_count() > 0).into())]))
}

/// Whether events may be posted to `url`. Loopback and private addresses are allowed.
fn check(url: &str) -> Result<(), String> {
    let invalid = |why: &str| format!("invalid URL: {why}");
    if url.bytes().any(|b| b < 0x20 || b == 0x7F) {
        return Err(invalid("invalid control character in URL"));
    }
    let (scheme, rest) = match url.split_once(':') {
        Some(("", _)) => return Err(invalid("missing protocol scheme")),
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_ascii_lowercase(), rest),
        _ => (String::new(), url),
    };
    if scheme != "http" && scheme != "https" {
        return Err(format!("URL must use http or https scheme, got {scheme:?}"));
    }
    let authority = rest.strip_prefix("//").unwrap_or_default();
    let authority = authority.split(['/', '?', '#']).next().unwrap_or_default();
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = match host_port.strip_prefix('[') {
        Some(inner) => {
            let (host, after) = inner.split_once(']').ok_or_else(|| invalid("missing ']' in host"))?;
            (host, after.strip_prefix(':').unwrap_or(after))
        }
        None => host_port.rsplit_once(':').unwrap_or((host_port, "")),
    };
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid(&format!("invalid port {port:?} after host")));
    }
    if host.is_empty() {
        return Err("URL must have a host".into());
    }
    if let Ok(ip) = host.split('%').next().unwrap_or_default().parse::<IpAddr>()
        && is_link_local(ip)
    {
        return Err(format!("URL cannot target link-local address {host}"));
    }
    if METADATA_HOSTS.contains(&host.trim_end_matches('.').to_ascii_lowercase().as_str()) {
        return Err(format!("URL cannot target cloud metadata endpoint {host}"));
    }
    Ok(())
}

fn is_scheme(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.is_link_local(),
            None => v6.is_unicast_link_local() || (v6.segments()[0] & 0xFF0F) == 0xFF02,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn hooks_may_go_to_web_servers_but_not_to_metadata_services() {
        for url in [
            "http://127.0.0.1:9999/hook",
            "http://10.0.0.1/x",
            "https://example.com/hook?a=b#c",
            "HTTPS://user:pw@Example.com",
            "http://[::1]:8080/",
        ] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        for (url, error) in [
            ("ftp://x/y", "URL must use http or https scheme, got \"ftp\""),
            ("garbage", "URL must use http or https scheme, got \"\""),
            ("http://", "URL must have a host"),
            ("http:/x", "URL must have a host"),
            ("http://:80/", "URL must have a host"),
            ("http://169.254.169.254/", "URL cannot target link-local address 169.254.169.254"),
            ("http://[fe80::1]/", "URL cannot target link-local address fe80::1"),
            (
                "http://[::ffff:169.254.169.254]/",
                "URL cannot target link-local address ::ffff:169.254.169.254",
            ),
            (
                "http://Metadata.Google.Internal/x",
                "URL cannot target cloud metadata endpoint Metadata.Google.Internal",
            ),
            ("http://h:8x/", "invalid URL: invalid port \"8x\" after host"),
            ("http://a\nb/", "invalid URL: invalid control character in URL"),
            (":x", "invalid URL: missing protocol scheme"),
        ] {
            assert_eq!(check(url).unwrap_err(), error, "{url:?}");
        }
    }
}
