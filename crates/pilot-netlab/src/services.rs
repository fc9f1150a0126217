//! Real servers of Debian on hosts of the laboratory: an HTTP proxy, and a router that maps ports on request.

use crate::host::{Host, Process};
use crate::lab::Lab;
use crate::link::Duplex;
use crate::prefix::Prefix;
use crate::world::NetworkId;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Port of the HTTP proxy.
const PROXY_PORT: u16 = 3128;
/// Port of NAT-PMP and PCP servers (RFC 6886, RFC 6887).
const PCP_PORT: u16 = 5351;
/// Port of the UPnP description and its SOAP actions.
const UPNP_PORT: u16 = 5000;
/// How long a server may take to begin.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long until a server that did not answer is asked again.
const RETRY: Duration = Duration::from_millis(20);

/// Rules of the kernel's packet filter on a [`MappingRouter`]: translation like a port-restricted NAT, and the
/// chains miniupnpd adds to. What comes from outside for the router itself is dropped, as home routers do: an answer, even of
/// ICMP, would make the kernel remember the sender and keep its frames from a port mapped later.
const RULES: &str = "
table inet filter {
    chain miniupnpd { }
    chain input {
        type filter hook input priority 0; policy accept;
        iifname eth0 ct state new drop
    }
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname eth1 oifname eth0 accept
        jump miniupnpd
    }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain prerouting {
        type nat hook prerouting priority -100; policy accept;
        jump prerouting_miniupnpd
    }
    chain postrouting {
        type nat hook postrouting priority 100; policy accept;
        jump postrouting_miniupnpd
        oifname eth0 masquerade
    }
}
";

/// What a router that does not know PCP does not hear: the first byte is its version, 2.
const NO_PCP: &str = "
table inet old {
    chain input {
        type filter hook input priority 0; policy accept;
        udp dport 5351 @th,64,8 2 drop
    }
}
";

/// An HTTP proxy that asks for a name and a password and connects to port 443 only.
pub struct HttpProxy {
    host: Host,
    addr: SocketAddr,
    _process: Process,
}

impl HttpProxy {
    /// Starts tinyproxy on a host.
    ///
    /// # Errors
    ///
    /// If tinyproxy (package tinyproxy-bin) is missing or does not begin to listen.
    pub fn start(host: &Host, user: &str, password: &str) -> io::Result<HttpProxy> {
        let config = format!(
            "Port {PROXY_PORT}\nBasicAuth {user} {password}\nConnectPort 443\nTimeout 600\nMaxClients 100\nLogLevel Error\n"
        );
        let path = format!("/run/tinyproxy-{}.conf", host.name());
        write_file(host, &path, config)?;
        let mut command = Command::new("tinyproxy");
        command.args(["-d", "-c", &path]).stdin(Stdio::null()).stdout(Stdio::null());
        let process = host.spawn(command).map_err(|e| missing("tinyproxy", "tinyproxy-bin", &e))?;
        let addr = SocketAddr::new(host.v4().into(), PROXY_PORT);
        wait_for("tinyproxy", || host.run(|| TcpStream::connect(addr).is_ok()))?;
        Ok(HttpProxy { host: host.clone(), addr, _process: process })
    }

    /// The host it runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Protocols by which a router maps ports on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocols {
    /// UPnP-IGD.
    Upnp,
    /// PCP and NAT-PMP, which share a port.
    Pcp,
    /// NAT-PMP only: questions in the version of PCP are not answered.
    NatPmp,
}

/// A router in the kernel, with a port-restricted NAT, that maps ports on request: miniupnpd on a host of its own.
pub struct MappingRouter {
    host: Host,
    lan: NetworkId,
    inside: Ipv4Addr,
    _daemon: Process,
}

impl MappingRouter {
    /// Starts one between a network and a new one with this IPv4 prefix.
    ///
    /// # Errors
    ///
    /// If nft (package nftables) or miniupnpd (package miniupnpd-nftables) is missing, or does not begin to serve.
    pub fn start(
        lab: &Lab,
        name: &str,
        outside: NetworkId,
        link: impl Into<Duplex>,
        inside: &str,
        protocols: Protocols,
    ) -> io::Result<MappingRouter> {
        let prefix: Prefix = inside.parse().map_err(io::Error::other)?;
        let IpAddr::V4(own) = prefix.nth(1) else {
            return Err(io::Error::other(format!(
                "{inside}: a router that maps ports needs an IPv4 prefix inside"
            )));
        };
        let host = lab.host(name).v4_only().on(outside, link).start()?;
        let lan = lab.network(&[inside])?;
        host.attach_as_gateway(lan)?;
        write_file(&host, "/proc/sys/net/ipv4/ip_forward", "1".into())?;
        load_rules(&host, RULES)?;
        if protocols == Protocols::NatPmp {
            load_rules(&host, NO_PCP)?;
        }
        let yes = |on: bool| if on { "yes" } else { "no" };
        let config = format!(
            "ext_ifname=eth0\nlistening_ip=eth1\nhttp_port={UPNP_PORT}\nenable_upnp={}\nenable_natpmp={}\n\
             secure_mode=yes\nsystem_uptime=yes\nuuid=00000000-0000-0000-0000-000000000000\n\
             upnp_table_name=filter\nupnp_nat_table_name=filter\nupnp_forward_chain=miniupnpd\n\
             upnp_nat_chain=prerouting_miniupnpd\nupnp_nat_postrouting_chain=postrouting_miniupnpd\n\
             allow 1024-65535 0.0.0.0/0 1024-65535\n",
            yes(protocols == Protocols::Upnp),
            yes(protocols != Protocols::Upnp),
        );
        let path = format!("/run/miniupnpd-{name}.conf");
        write_file(&host, &path, config)?;
        let mut command = Command::new("miniupnpd");
        command.args(["-d", "-f", &path, "-P", &format!("/run/miniupnpd-{name}.pid")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = host.spawn(command).map_err(|e| missing("miniupnpd", "miniupnpd-nftables", &e))?;
        let router = MappingRouter { host, lan, inside: own, _daemon: daemon };
        match protocols {
            Protocols::Upnp => {
                let addr = SocketAddr::new(router.inside().into(), UPNP_PORT);
                wait_for("miniupnpd", || router.host.run(|| TcpStream::connect(addr).is_ok()))?;
            }
            Protocols::Pcp | Protocols::NatPmp => {
                wait_for("miniupnpd", || router.host.run(|| router.answers_nat_pmp()))?
            }
        }
        Ok(router)
    }

    /// The network inside.
    pub fn lan(&self) -> NetworkId {
        self.lan
    }

    /// The host it runs on: `eth0` is outside, `eth1` inside.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Its address inside.
    pub fn inside(&self) -> Ipv4Addr {
        self.inside
    }

    /// Asks for the external address by NAT-PMP.
    fn answers_nat_pmp(&self) -> bool {
        let ask = || -> io::Result<usize> {
            let socket = UdpSocket::bind((self.inside(), 0))?;
            socket.set_read_timeout(Some(RETRY))?;
            socket.connect(SocketAddrV4::new(self.inside(), PCP_PORT))?;
            socket.send(&[0, 0])?;
            socket.recv(&mut [0; 16])
        };
        ask().is_ok()
    }
}

/// Loads the packet filter.
fn load_rules(host: &Host, rules: &str) -> io::Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = host.spawn(command).map_err(|e| missing("nft", "nftables", &e))?;
    if let Some(mut stdin) = nft.stdin.take() {
        stdin.write_all(rules.as_bytes())?;
    }
    let output = nft.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("nft: {}", String::from_utf8_lossy(&output.stderr))))
}

/// Writes a file as the host sees it.
fn write_file(host: &Host, path: &str, content: String) -> io::Result<()> {
    let path = path.to_owned();
    host.on_thread(move || std::fs::write(path, content))?
}

fn missing(program: &str, package: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{program} (package {package}): {error}"))
}

fn wait_for(what: &str, mut ready: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !ready()? {
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("{what} did not begin to serve within {PATIENCE:?}")));
        }
        std::thread::park_timeout(RETRY);
    }
    Ok(())
}
