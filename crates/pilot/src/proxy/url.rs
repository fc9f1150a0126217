//! A proxy's URL, and which hosts need none.

use pilot_proto::crypto::Secret;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// `http://[user:password@]host:port`, or `https://` for TLS to the proxy itself.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) user: Option<(String, Secret)>,
}

impl ProxyUrl {
    /// `host:port`: what credentials are kept under.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for ProxyUrl {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let user = if self.user.is_some() { "***@" } else { "" };
        write!(f, "{}://{user}{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ProxyUrl {
    type Err = String;

    /// The error does not repeat the text: it may hold a password.
    fn from_str(text: &str) -> Result<ProxyUrl, String> {
        let bad = |why: &str| format!("invalid proxy URL: {why}; expected http://[user:password@]host:port");
        let text = text.trim();
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) if scheme.len() <= 10 => {
                return Err(bad(&format!("{scheme}:// is no HTTP proxy")));
            }
            Some(_) => return Err(bad("unknown scheme")),
            None => (false, text),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => {
                let (name, password) = user.split_once(':').unwrap_or((user, ""));
                let name = unescape(name).ok_or_else(|| bad("malformed user name"))?;
                let password = unescape(password).ok_or_else(|| bad("malformed password"))?;
                (Some((name, Secret::from(password))), place)
            }
            None => (None, authority),
        };
        let default = if tls { 443 } else { 80 };
        let (host, port) = split(place, default).ok_or_else(|| bad("no host, or no port"))?;
        Ok(ProxyUrl { tls, host: host.to_owned(), port, user })
    }
}

/// Host and port; the port may be missing.
pub(crate) fn split(place: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let plain = !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic());
    let port = port.map_or(Some(default), |port| port.parse().ok().filter(|&p| p != 0))?;
    plain.then_some((host, port))
}

/// Percent escapes.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(out).ok()
}

/// Whether `NO_PROXY` names this host: `*`, a name with all below it, an address, a prefix, each perhaps with a port.
pub(super) fn exempt(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let ip: Option<IpAddr> = host.parse().ok();
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some(ip), Some((network, bits))) = (ip, entry.split_once('/')) {
            let (Ok(network), Ok(bits)) = (network.parse(), bits.parse()) else { return false };
            return within(network, bits, ip);
        }
        let Some((name, only)) = (match entry.parse::<IpAddr>() {
            Ok(_) => Some((entry, 0)),
            Err(_) => split(entry, 1).map(|(name, only)| (name, if only == 1 { 0 } else { only })),
        }) else {
            return false;
        };
        if only != 0 && only != port {
            return false;
        }
        if let Some(ip) = ip {
            return name.parse() == Ok(ip);
        }
        let name = name.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
        host == name || host.strip_suffix(&name).is_some_and(|rest| rest.ends_with('.'))
    })
}

fn within(network: IpAddr, bits: u32, ip: IpAddr) -> bool {
    let (a, b, width) = match (network, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(a.to_bits()), u128::from(b.to_bits()), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
        _ => return false,
    };
    let rest = width - bits.min(width);
    a.checked_shr(rest).unwrap_or(0) == b.checked_shr(rest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_shown_without_their_secret() {
        let url: ProxyUrl = "http://us%40er:p%3As@proxy.example:3128/".parse().unwrap();
        let (name, password) = url.user.clone().unwrap();
        assert_eq!((&*name, password.expose()), ("us@er", "p:s"));
        assert_eq!(format!("{url} {url:?}"), "http://***@proxy.example:3128 http://***@proxy.example:3128");
        assert_eq!("proxy:8080".parse::<ProxyUrl>().unwrap().to_string(), "http://proxy:8080");
        assert_eq!("https://[2001:db8::1]".parse::<ProxyUrl>().unwrap().authority(), "[2001:db8::1]:443");
        for wrong in [
            "socks5://s3cret@a:1",
            "http://",
            "http://a:0",
            "http://a:b",
            "http://s3cret%:x@a:1",
            "http://a b",
        ] {
            let error = wrong.parse::<ProxyUrl>().unwrap_err();
            assert!(error.starts_with("invalid proxy URL: ") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn no_proxy_names_hosts_domains_addresses_and_prefixes() {
        let list =
            "localhost, .corp.example,intern.example:8443 10.0.0.0/8,192.0.2.7,2001:db8::/32,*.dev.example";
        let yes = |host: &str, port| exempt(list, host, port);
        assert!(yes("localhost", 1) && yes("a.corp.example", 443) && yes("corp.example.", 443));
        assert!(yes("INTERN.example", 8443) && !yes("intern.example", 443));
        assert!(
            yes("10.9.8.7", 443) && !yes("11.0.0.1", 443) && yes("192.0.2.7", 9) && yes("2001:db8:1::1", 9)
        );
        assert!(yes("x.dev.example", 1) && !yes("xcorp.example", 443) && !yes("example", 443));
        assert!(exempt("*", "anything", 1) && !exempt("", "anything", 1));
    }
}
