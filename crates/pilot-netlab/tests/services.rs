//! The proxy and the port-mapping router, spoken to as a client would.
#![allow(clippy::unwrap_used)]

mod common;

use common::{PATIENCE, Udp, behind};
use pilot_netlab::{Firewall, Host, HttpProxy, Lab, Link, MappingRouter, Nat, Protocols};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};

const LAN: &str = "192.168.1.0/24";

/// One request line and headers to a proxy; its status line and the stream behind it.
fn connect_through(host: &Host, proxy: SocketAddr, to: SocketAddr, auth: &str) -> (String, TcpStream) {
    let mut stream = host.run(|| TcpStream::connect_timeout(&proxy, PATIENCE)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n{auth}\r\n").unwrap();
    let mut lines = BufReader::with_capacity(1, stream.try_clone().unwrap()).lines();
    let status = lines.next().unwrap().unwrap();
    while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
    (status, stream)
}

#[test]
fn a_proxy_with_the_right_password_is_the_only_way_out() {
    let lab = Lab::with_seed(41).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().unwrap();
    let router = lab.router(lab.internet(), Link::new(), &[LAN]).unwrap().nat(Nat::port_restricted()).start();
    let (inside, gate) = (behind(&lab, &router, "inside"), behind(&lab, &router, "gate"));
    router.set_firewall(Firewall::only_tcp_from(gate.v4().into(), 443));
    let proxy = HttpProxy::start(&gate, "agent", "secret").unwrap();
    let to = SocketAddr::new(server.v4().into(), 443);
    let listener = server.run(|| TcpListener::bind(to)).unwrap().unwrap();

    let (status, _) = connect_through(&inside, proxy.addr(), to, "");
    assert!(status.contains(" 407 "), "{status}");
    // Base64 of agent:wrong and agent:secret.
    let auth = |word: &str| format!("Proxy-Authorization: Basic {word}\r\n");
    let (status, _) = connect_through(&inside, proxy.addr(), to, &auth("YWdlbnQ6d3Jvbmc="));
    assert!(status.contains(" 401 ") || status.contains(" 407 "), "{status}");
    let (status, mut stream) = connect_through(&inside, proxy.addr(), to, &auth("YWdlbnQ6c2VjcmV0"));
    assert!(status.contains(" 200 "), "{status}");
    let (mut accepted, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), router.v4());
    stream.write_all(b"through").unwrap();
    let mut word = [0; 7];
    accepted.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"through");
    let other = SocketAddr::new(to.ip(), 80);
    let (status, _) = connect_through(&inside, proxy.addr(), other, &auth("YWdlbnQ6c2VjcmV0"));
    assert!(status.contains(" 403 "), "{status}");
}

struct Mapped {
    _lab: Lab,
    server: Host,
    inside: Host,
    router: MappingRouter,
}

fn mapped(seed: u64, protocols: Protocols) -> Mapped {
    let lab = Lab::with_seed(seed).expect("root");
    let server = lab.host("server").on(lab.internet(), Link::new()).start().unwrap();
    let router = MappingRouter::start(&lab, "router", lab.internet(), Link::new(), LAN, protocols).unwrap();
    let inside = lab.host("inside").on(router.lan(), Link::new()).start().unwrap();
    Mapped { _lab: lab, server, inside, router }
}

impl Mapped {
    /// Whether an unasked datagram to an external port reaches port 4000 inside.
    fn reaches(&self, external: u16) -> bool {
        let at_inside = Udp::bind(&self.inside, self.inside.v4(), 4000);
        let at_server = Udp::bind(&self.server, self.server.v4(), 0);
        at_server.send(SocketAddrV4::new(self.router.host().v4(), external).into(), b"unasked");
        // An answer to a question takes the same way after it.
        at_inside.send(at_server.addr(), b"question");
        let (asker, question) = at_server.recv();
        assert_eq!(question, b"question");
        at_server.send(asker, b"answer");
        let first = at_inside.recv().1;
        assert!(first == b"unasked" || first == b"answer", "{first:?}");
        first == b"unasked"
    }
}

#[test]
fn nat_pmp_and_pcp_map_ports() {
    let net = mapped(42, Protocols::Pcp);
    let client = Udp::bind(&net.inside, net.inside.v4(), 0);
    let gateway: SocketAddr = SocketAddrV4::new(net.router.inside(), 5351).into();
    assert_eq!(net.router.inside(), Ipv4Addr::new(192, 168, 1, 1));
    assert!(!net.reaches(6001));

    // NAT-PMP (RFC 6886, section 3.3): UDP 4000 inside, 6001 outside, for an hour.
    let mut request = vec![0, 1, 0, 0];
    request.extend_from_slice(&4000u16.to_be_bytes());
    request.extend_from_slice(&6001u16.to_be_bytes());
    request.extend_from_slice(&3600u32.to_be_bytes());
    client.send(gateway, &request);
    let (_, reply) = client.recv();
    assert_eq!((reply[..4].to_vec(), &reply[8..12]), (vec![0, 129, 0, 0], &request[4..8]));
    assert!(net.reaches(6001));

    // PCP MAP (RFC 6887, section 11): UDP 4000 inside, 6002 outside.
    let mut request = vec![2, 1, 0, 0];
    request.extend_from_slice(&3600u32.to_be_bytes());
    request.extend_from_slice(&net.inside.v4().to_ipv6_mapped().octets());
    request.extend_from_slice(&[9; 12]);
    request.extend_from_slice(&[17, 0, 0, 0]);
    request.extend_from_slice(&4000u16.to_be_bytes());
    request.extend_from_slice(&6002u16.to_be_bytes());
    request.extend_from_slice(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    client.send(gateway, &request);
    let (_, reply) = client.recv();
    assert_eq!(reply[..4], [2, 129, 0, 0], "PCP success");
    assert_eq!(reply[44..60], net.router.host().v4().to_ipv6_mapped().octets());
    assert!(net.reaches(u16::from_be_bytes([reply[42], reply[43]])));
}

#[test]
fn upnp_is_discovered_and_maps_ports() {
    let net = mapped(43, Protocols::Upnp);
    let client = Udp::bind(&net.inside, net.inside.v4(), 0);
    let search = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
                  ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";
    client.send("239.255.255.250:1900".parse().unwrap(), search.as_bytes());
    let answer = String::from_utf8(client.recv().1).unwrap().to_ascii_lowercase();
    assert!(answer.contains("location: http://192.168.1.1:5000/"), "{answer}");
    assert!(!net.reaches(6003));

    let service = "urn:schemas-upnp-org:service:WANIPConnection:1";
    let body = format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
         <u:AddPortMapping xmlns:u=\"{service}\"><NewRemoteHost></NewRemoteHost>\
         <NewExternalPort>6003</NewExternalPort><NewProtocol>UDP</NewProtocol>\
         <NewInternalPort>4000</NewInternalPort><NewInternalClient>{}</NewInternalClient>\
         <NewEnabled>1</NewEnabled><NewPortMappingDescription>test</NewPortMappingDescription>\
         <NewLeaseDuration>0</NewLeaseDuration></u:AddPortMapping></s:Body></s:Envelope>",
        net.inside.v4()
    );
    let to = SocketAddr::new(net.router.inside().into(), 5000);
    let mut stream = net.inside.run(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "POST /ctl/IPConn HTTP/1.1\r\nHost: {to}\r\nContent-Type: text/xml\r\nConnection: close\r\n\
         SOAPAction: \"{service}#AddPortMapping\"\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(net.reaches(6003));
}
