//! UPnP-IGD: a router is found by multicast, describes itself, and maps ports by SOAP.
//!
//! What comes from the network is believed as far as it must be: descriptions are read from the address that announced
//! them, and asked of nobody else, so nobody can have us send requests elsewhere.

use super::{Granted, LIFETIME, http};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

const SSDP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);
/// What is searched for; routers of the second version answer to the first, too.
const TARGETS: [&str; 2] =
    ["urn:schemas-upnp-org:device:InternetGatewayDevice:1", "urn:schemas-upnp-org:service:WANIPConnection:1"];
/// Services that map ports, best first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// The search is repeated after this long, since it may be lost, and ends after the second time.
const SEARCH: [Duration; 2] = [Duration::from_millis(400), Duration::from_millis(1600)];
/// Longest name of an element (bytes).
const MAX_TAG: usize = 64;
/// Routers looked at.
const MAX_ROUTERS: usize = 4;
/// External ports tried when one is taken.
const MAX_PORTS: u16 = 4;
/// SOAP errors: the port is taken, and only mappings without an end are possible.
const CONFLICT: &str = "718";
const ONLY_PERMANENT: &str = "725";

/// A service of a router that maps ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    at: SocketAddr,
    path: String,
    kind: &'static str,
}

/// The mapping of one port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    service: Service,
    inside: SocketAddrV4,
    /// External port.
    port: u16,
}

/// Where a router's description is: an answer to a search from `from`.
pub(super) fn read_search(bytes: &[u8], from: IpAddr) -> Option<(SocketAddr, String)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut lines = text.split("\r\n");
    lines.next().filter(|first| first.starts_with("HTTP/1.") && first.contains(" 200"))?;
    let location = lines.filter_map(|line| line.split_once(':'));
    let (_, url) = location.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("location"))?;
    let (at, path) = split_url(url.trim())?;
    (at.ip() == from).then_some((at, path))
}

/// Address and path of an `http` URL whose host is an IP address.
fn split_url(url: &str) -> Option<(SocketAddr, String)> {
    let rest = url.strip_prefix("http://")?;
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let at = host.parse().ok().or_else(|| Some(SocketAddr::new(host.parse().ok()?, 80)))?;
    let path = if path.is_empty() { "/" } else { path };
    let plain = path.bytes().all(|b| b.is_ascii_graphic());
    plain.then(|| (at, path.to_owned()))
}

/// The text of the first element with this name. Good enough for what routers write: no nesting of the same name, no
/// comments inside.
fn element<'a>(xml: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = xml;
    loop {
        let at = rest.find('<')?;
        rest = &rest[at + 1..];
        // A name ends soon, so that a text without ends costs no time.
        let end = rest.bytes().take(MAX_TAG).position(|b| matches!(b, b'>' | b' ' | b'/'));
        let Some(tag) = end.map(|end| &rest[..end]) else { continue };
        // With or without a namespace.
        if tag.rsplit(':').next() == Some(name) {
            let start = rest.find('>')? + 1;
            let body = &rest[start..];
            return Some(body[..body.find(&format!("</{tag}"))?].trim());
        }
    }
}

/// The service that maps ports in the description of the router at `at`.
pub(super) fn read_description(xml: &str, at: SocketAddr) -> Option<Service> {
    let services = || {
        xml.split("<service>").skip(1).filter_map(|part| {
            let part = part.split("</service>").next()?;
            Some((element(part, "serviceType")?, element(part, "controlURL")?))
        })
    };
    let kind = |kind: &'static str| {
        let (_, url) = services().find(|(service, _)| *service == kind)?;
        let url = url.replace("&amp;", "&");
        let (at, path) = match split_url(&url) {
            // Only the router itself.
            Some((other, path)) if other.ip() == at.ip() => (other, path),
            Some(_) => return None,
            None if url.contains("://") || !url.bytes().all(|b| b.is_ascii_graphic()) => return None,
            None => (at, format!("/{}", url.trim_start_matches('/'))),
        };
        Some(Service { at, path, kind })
    };
    SERVICES.into_iter().find_map(kind)
}

/// A router on the network of `own` that maps ports.
pub(super) async fn find(own: Ipv4Addr, gateway: Ipv4Addr) -> Option<Service> {
    let mut tried: Vec<(SocketAddr, String)> = Vec::new();
    let socket = UdpSocket::bind((own, 0)).await.ok()?;
    // By the interface in question, whatever the routes for multicast say.
    let _ = socket2::SockRef::from(&socket).set_multicast_if_v4(&own);
    for wait in SEARCH {
        for target in TARGETS {
            let request = format!(
                "M-SEARCH * HTTP/1.1\r\nHOST: {SSDP}\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: {target}\r\n\r\n"
            );
            let _ = socket.send_to(request.as_bytes(), SSDP).await;
            // Where multicast is filtered.
            let _ = socket.send_to(request.as_bytes(), (gateway, SSDP.port())).await;
        }
        let until = Instant::now() + wait;
        let mut buffer = [0; 2048];
        while let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await {
            // An ICMP error of the gateway is no end.
            let Ok((n, from)) = received else { continue };
            let Some(found) = read_search(&buffer[..n], from.ip()) else { continue };
            if tried.contains(&found) || tried.len() >= MAX_ROUTERS {
                continue;
            }
            tried.push(found.clone());
            if let Some(service) = describe(found.0, &found.1).await {
                return Some(service);
            }
        }
    }
    None
}

async fn describe(at: SocketAddr, path: &str) -> Option<Service> {
    let answer = http::exchange(at, &format!("GET {path} HTTP/1.1\r\n"), "").await;
    match answer {
        Ok(answer) if answer.status == 200 => read_description(&answer.body, at),
        other => {
            tracing::debug!(router = %at, ?other, "no description of a router");
            None
        }
    }
}

impl Service {
    async fn call(&self, action: &str, arguments: &[(&str, &str)]) -> Result<String, String> {
        let kind = self.kind;
        let arguments: String =
            arguments.iter().map(|(name, value)| format!("<{name}>{value}</{name}>")).collect();
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{kind}\">\
             {arguments}</u:{action}></s:Body></s:Envelope>\r\n"
        );
        let head = format!(
            "POST {} HTTP/1.1\r\nContent-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{kind}#{action}\"\r\n",
            self.path
        );
        let answer = http::exchange(self.at, &head, &body).await?;
        match answer.status {
            200 => Ok(answer.body),
            status => {
                Err(element(&answer.body, "errorCode").map_or_else(|| status.to_string(), str::to_owned))
            }
        }
    }

    /// A mapping to `inside`.
    pub(super) async fn map(self, inside: SocketAddrV4) -> Result<(Mapping, Granted), String> {
        let mut mapping = Mapping { service: self, inside, port: inside.port() };
        let granted = mapping.request().await?;
        Ok((mapping, granted))
    }
}

impl Mapping {
    /// Asks for the mapping, or to go on with it.
    pub(super) async fn request(&mut self) -> Result<Granted, String> {
        let answer = self.service.call("GetExternalIPAddress", &[]).await?;
        let ip = element(&answer, "NewExternalIPAddress").and_then(|ip| ip.parse().ok());
        let ip: IpAddr = ip.ok_or("the router does not tell its address")?;
        let mut lifetime = LIFETIME;
        let mut tries = 0;
        loop {
            match self.add(lifetime).await {
                Ok(()) => break,
                Err(code) if code == ONLY_PERMANENT && lifetime != 0 => lifetime = 0,
                Err(code) if code == CONFLICT && tries < MAX_PORTS => {
                    tries += 1;
                    self.port = self.port.checked_add(1).unwrap_or(1024);
                }
                Err(code) => return Err(format!("the router refuses (error {code})")),
            }
        }
        // A mapping without an end may be lost as well, with the router's memory.
        let lifetime = if lifetime == 0 { LIFETIME } else { lifetime };
        Ok(Granted { at: SocketAddr::new(ip, self.port), lifetime: Duration::from_secs(lifetime.into()) })
    }

    async fn add(&self, lifetime: u32) -> Result<(), String> {
        let (outside, inside) = (self.port.to_string(), self.inside.port().to_string());
        let (client, lifetime) = (self.inside.ip().to_string(), lifetime.to_string());
        let arguments = [
            ("NewRemoteHost", ""),
            ("NewExternalPort", &outside[..]),
            ("NewProtocol", "UDP"),
            ("NewInternalPort", &inside),
            ("NewInternalClient", &client),
            ("NewEnabled", "1"),
            ("NewPortMappingDescription", "pilot"),
            ("NewLeaseDuration", &lifetime),
        ];
        self.service.call("AddPortMapping", &arguments).await.map(drop)
    }

    /// Gives the mapping back.
    pub(super) async fn release(&self) {
        let outside = self.port.to_string();
        let arguments = [("NewRemoteHost", ""), ("NewExternalPort", &outside[..]), ("NewProtocol", "UDP")];
        let _ = self.service.call("DeletePortMapping", &arguments).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTER: &str = "192.168.1.1:5000";

    fn description(control: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><serviceList><service>\
             <serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType><controlURL>/l3f</controlURL>\
             </service><service>\n <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\n \
             <controlURL>{control}</controlURL></service></serviceList></device></root>"
        )
    }

    #[test]
    fn an_announcement_counts_for_the_address_it_comes_from() {
        let answer = |location: &str| {
            format!("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nLocation: {location}\r\nST: x\r\n\r\n")
        };
        let from: IpAddr = "192.168.1.1".parse().unwrap();
        let read = |text: &str| read_search(text.as_bytes(), from);
        let found = Some((ROUTER.parse().unwrap(), "/root.xml".to_owned()));
        assert_eq!(read(&answer("http://192.168.1.1:5000/root.xml")), found);
        let found = Some(("192.168.1.1:80".parse().unwrap(), "/".to_owned()));
        assert_eq!(read(&answer("http://192.168.1.1")), found);
        for bad in [
            "http://192.168.1.2:5000/root.xml",
            "http://router/root.xml",
            "https://192.168.1.1/",
            "http://192.168.1.1/a b",
        ] {
            assert_eq!(read(&answer(bad)), None, "{bad}");
        }
        assert_eq!(read("NOTIFY * HTTP/1.1\r\nLocation: http://192.168.1.1/\r\n\r\n"), None);
    }

    #[test]
    fn the_service_that_maps_ports_is_found_and_only_on_the_router() {
        let at: SocketAddr = ROUTER.parse().unwrap();
        let path = |control: &str| {
            let service = read_description(&description(control), at)?;
            assert_eq!((service.at, service.kind), (at, SERVICES[1]));
            Some(service.path)
        };
        assert_eq!(path("/ctl/IPConn?a=1&amp;b=2").as_deref(), Some("/ctl/IPConn?a=1&b=2"));
        assert_eq!(path("ctl").as_deref(), Some("/ctl"));
        assert_eq!(path("http://192.168.1.1:5000/ctl").as_deref(), Some("/ctl"));
        assert_eq!(path("http://203.0.113.1/ctl"), None);
        assert_eq!(path("ftp://192.168.1.1/ctl"), None);
        assert_eq!(path("/a b"), None);
        assert_eq!(read_description("<root/>", at), None);
    }

    #[test]
    fn elements_are_found_with_and_without_a_namespace() {
        let xml = "<s:Body><u:R xmlns:u=\"x\"><NewExternalIPAddress> 203.0.113.9 </NewExternalIPAddress></u:R></s:Body>";
        assert_eq!(element(xml, "NewExternalIPAddress"), Some("203.0.113.9"));
        assert_eq!(element("<u:errorCode>718</u:errorCode>", "errorCode"), Some("718"));
        for cut in 0..xml.find("</New").unwrap() {
            assert_eq!(element(&xml[..cut], "NewExternalIPAddress"), None);
        }
    }
}
