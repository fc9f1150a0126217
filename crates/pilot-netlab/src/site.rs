//! Ready-made places for an agent to be in: a host, and what stands between it and the Internet.

use crate::firewall::Firewall;
use crate::host::Host;
use crate::lab::Lab;
use crate::link::{Duplex, Link};
use crate::nat::Nat;
use crate::router::Router;
use crate::services::{HttpProxy, MappingRouter, Protocols};
use std::io;
use std::str::FromStr;
use std::time::Duration;

/// Name and password of the proxy of [`Site::ProxyOnly`].
pub const PROXY_CREDENTIALS: (&str, &str) = ("agent", "secret");
/// How long a mapping of [`Site::ShortLived`] lives without traffic.
const SHORT: Duration = Duration::from_secs(2);

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Site {
    /// A public IPv4 address of its own.
    Public,
    /// Behind a full-cone NAT.
    FullCone,
    /// Behind an address-restricted NAT.
    AddressRestricted,
    /// Behind a port-restricted NAT.
    PortRestricted,
    /// Behind a symmetric NAT with random ports.
    Symmetric,
    /// Behind a symmetric NAT with consecutive ports.
    Predictable,
    /// Behind a port-restricted NAT behind a carrier's port-restricted NAT.
    Carrier,
    /// Behind a port-restricted NAT that forgets after 2 s.
    ShortLived,
    /// Behind a port-restricted NAT that does not hairpin.
    NoHairpin,
    /// IPv6 only, behind a stateful firewall.
    V6Only,
    /// IPv6 behind a stateful firewall, IPv4 behind a port-restricted NAT.
    DualStack,
    /// Behind a port-restricted NAT that maps ports by UPnP-IGD.
    Upnp,
    /// Behind a port-restricted NAT that maps ports by PCP and NAT-PMP.
    Pcp,
    /// Behind a port-restricted NAT that maps ports by NAT-PMP alone.
    NatPmp,
    /// Behind a port-restricted NAT, UDP blocked.
    UdpBlocked,
    /// No way out but an HTTP proxy with a password, to port 443.
    ProxyOnly,
}

impl Site {
    /// Every kind.
    pub const ALL: [Site; 16] = [
        Site::Public,
        Site::FullCone,
        Site::AddressRestricted,
        Site::PortRestricted,
        Site::Symmetric,
        Site::Predictable,
        Site::Carrier,
        Site::ShortLived,
        Site::NoHairpin,
        Site::V6Only,
        Site::DualStack,
        Site::Upnp,
        Site::Pcp,
        Site::NatPmp,
        Site::UdpBlocked,
        Site::ProxyOnly,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Site::Public => "public",
            Site::FullCone => "full-cone",
            Site::AddressRestricted => "address-restricted",
            Site::PortRestricted => "port-restricted",
            Site::Symmetric => "symmetric",
            Site::Predictable => "predictable",
            Site::Carrier => "carrier",
            Site::ShortLived => "short-lived",
            Site::NoHairpin => "no-hairpin",
            Site::V6Only => "ipv6-only",
            Site::DualStack => "dual-stack",
            Site::Upnp => "upnp",
            Site::Pcp => "pcp",
            Site::NatPmp => "nat-pmp",
            Site::UdpBlocked => "udp-blocked",
            Site::ProxyOnly => "proxy-only",
        }
    }

    /// What it is, in a line.
    pub const fn description(self) -> &'static str {
        match self {
            Site::Public => "a public IPv4 address of its own",
            Site::FullCone => "a NAT that maps by endpoint only and lets anybody in",
            Site::AddressRestricted => "a NAT that lets in addresses that were sent to",
            Site::PortRestricted => "a NAT that lets in addresses and ports that were sent to",
            Site::Symmetric => "a NAT with a random port per destination",
            Site::Predictable => "a NAT with a new port per destination, one after the other",
            Site::Carrier => "a port-restricted NAT behind a carrier's port-restricted NAT",
            Site::ShortLived => "a port-restricted NAT that forgets a mapping after 2 s",
            Site::NoHairpin => "a port-restricted NAT that does not lead back inside",
            Site::V6Only => "IPv6 only, behind a stateful firewall",
            Site::DualStack => "IPv6 behind a stateful firewall, IPv4 behind a port-restricted NAT",
            Site::Upnp => "a port-restricted NAT with UPnP-IGD",
            Site::Pcp => "a port-restricted NAT with PCP and NAT-PMP",
            Site::NatPmp => "a port-restricted NAT with NAT-PMP, without PCP",
            Site::UdpBlocked => "a port-restricted NAT, UDP blocked",
            Site::ProxyOnly => "nothing but an HTTP proxy with a password, to port 443",
        }
    }

    const fn nat(self) -> Nat {
        match self {
            Site::FullCone => Nat::full_cone(),
            Site::AddressRestricted => Nat::address_restricted(),
            Site::Symmetric => Nat::symmetric(),
            Site::Predictable => Nat::symmetric_predictable(),
            Site::ShortLived => Nat::port_restricted().timeout(SHORT),
            Site::NoHairpin => Nat::port_restricted().hairpin(false),
            _ => Nat::port_restricted(),
        }
    }
}

impl FromStr for Site {
    type Err = String;

    fn from_str(name: &str) -> Result<Site, String> {
        Site::ALL.into_iter().find(|s| s.name() == name).ok_or_else(|| {
            let names: Vec<_> = Site::ALL.iter().map(|s| s.name()).collect();
            format!("{name:?} is no site; there are: {}", names.join(", "))
        })
    }
}

/// A place that has been made.
pub struct Place {
    /// Which kind.
    pub site: Site,
    /// The host of the agent.
    pub host: Host,
    /// The host's router, if it is one of the laboratory's.
    pub router: Option<Router>,
    /// The carrier's router.
    pub carrier: Option<Router>,
    /// The router, if it maps ports.
    pub mapping_router: Option<MappingRouter>,
    /// The way out of [`Site::ProxyOnly`].
    pub proxy: Option<HttpProxy>,
}

impl Place {
    /// Makes a place. `number` (0 to 255) tells its private addresses from other places'; `link` is the way to
    /// the Internet.
    ///
    /// # Errors
    ///
    /// As for hosts, routers and services.
    pub fn new(lab: &Lab, site: Site, name: &str, number: u8, link: impl Into<Duplex>) -> io::Result<Place> {
        let (internet, link) = (lab.internet(), link.into());
        let (v4, v6) = (format!("192.168.{number}.0/24"), format!("2a0f:7701:{number:x}::/64"));
        let place =
            |host| Place { site, host, router: None, carrier: None, mapping_router: None, proxy: None };
        let inside = |router: &Router| lab.host(name).on(router.lan(), Link::new()).start();
        match site {
            Site::Public => Ok(place(lab.host(name).v4_only().on(internet, link).start()?)),
            Site::Upnp | Site::Pcp | Site::NatPmp => {
                let protocols = match site {
                    Site::Upnp => Protocols::Upnp,
                    Site::Pcp => Protocols::Pcp,
                    _ => Protocols::NatPmp,
                };
                let router =
                    MappingRouter::start(lab, &format!("{name}-router"), internet, link, &v4, protocols)?;
                let host = lab.host(name).on(router.lan(), Link::new()).start()?;
                Ok(Place { mapping_router: Some(router), ..place(host) })
            }
            Site::Carrier => {
                let carrier = lab.router(internet, link, &[&format!("100.64.{number}.0/24")])?;
                let carrier = carrier.nat(Nat::port_restricted()).start();
                let router = lab.router(carrier.lan(), Link::new(), &[&v4])?.nat(site.nat()).start();
                let host = inside(&router)?;
                Ok(Place { router: Some(router), carrier: Some(carrier), ..place(host) })
            }
            Site::V6Only => {
                let router = lab.router(internet, link, &[&v6])?.start();
                let host = inside(&router)?;
                Ok(Place { router: Some(router), ..place(host) })
            }
            Site::DualStack => {
                let router = lab.router(internet, link, &[&v4, &v6])?.nat(site.nat()).start();
                let host = inside(&router)?;
                Ok(Place { router: Some(router), ..place(host) })
            }
            Site::UdpBlocked => {
                let router = lab.router(internet, link, &[&v4])?.nat(site.nat());
                let router = router.firewall(Firewall::no_udp()).start();
                let host = inside(&router)?;
                Ok(Place { router: Some(router), ..place(host) })
            }
            Site::ProxyOnly => {
                let router = lab.router(internet, link, &[&v4])?.nat(site.nat()).start();
                let gate = lab.host(&format!("{name}-proxy")).on(router.lan(), Link::new()).start()?;
                router.set_firewall(Firewall::only_tcp_from(gate.v4().into(), 443));
                let proxy = HttpProxy::start(&gate, PROXY_CREDENTIALS.0, PROXY_CREDENTIALS.1)?;
                let host = inside(&router)?;
                Ok(Place { router: Some(router), proxy: Some(proxy), ..place(host) })
            }
            Site::FullCone
            | Site::AddressRestricted
            | Site::PortRestricted
            | Site::Symmetric
            | Site::Predictable
            | Site::ShortLived
            | Site::NoHairpin => {
                let router = lab.router(internet, link, &[&v4])?.nat(site.nat()).start();
                let host = inside(&router)?;
                Ok(Place { router: Some(router), ..place(host) })
            }
        }
    }
}
