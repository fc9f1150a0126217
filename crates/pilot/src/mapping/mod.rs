//! A port of the router that leads to this node: PCP or NAT-PMP, else UPnP-IGD. It turns most home NATs into ones that let
//! anybody in (spec 04 section 21).
//!
//! Asked for when the node starts and when the network changes, renewed long before it ends, given back when the node stops.
//! Routers are asked on their own network only, and not at all by nodes that are alone on their host, relay only, or not
//! behind a NAT.

mod http;
mod pmp;
mod upnp;

use crate::shared::Shared;
use crate::{platform, random};
use pilot_proto::path::candidates::is_local;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a mapping shall live without being renewed, seconds: as RFC 6886 recommends.
const LIFETIME: u32 = 7200;
/// Renewed at half of its life, at the latest after this long: a router that was restarted has forgotten it.
const RENEW: Duration = Duration::from_secs(600);
/// A router that grants less than this is not asked more often.
const SHORTEST: Duration = Duration::from_secs(30);
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(1800));
/// Time to give a mapping back.
const RELEASE: Duration = Duration::from_secs(1);

/// What the router granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Granted {
    /// The address from outside.
    at: SocketAddr,
    lifetime: Duration,
}

/// The mapping there is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mapping {
    Pmp(pmp::Mapping),
    Upnp(upnp::Mapping),
}

impl Mapping {
    /// As `info` shows it.
    fn protocol(&self) -> &'static str {
        match self {
            Mapping::Pmp(pmp::Mapping { version: pmp::Version::Pcp, .. }) => "pcp",
            Mapping::Pmp(_) => "nat-pmp",
            Mapping::Upnp(_) => "upnp",
        }
    }

    async fn request(&mut self) -> Result<Granted, String> {
        match self {
            Mapping::Pmp(mapping) => mapping.request().await.map_err(|e| e.to_string()),
            Mapping::Upnp(mapping) => mapping.request().await,
        }
    }

    async fn release(&self) {
        match self {
            Mapping::Pmp(mapping) => mapping.release().await,
            Mapping::Upnp(mapping) => mapping.release().await,
        }
    }
}

/// Where we are on the router's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spot {
    inside: SocketAddrV4,
    gateway: Ipv4Addr,
}

/// The mapping of this node, and where it was when it was made.
#[derive(Debug, Default)]
pub(crate) struct Mapper(tokio::sync::Mutex<Option<(Spot, Mapping)>>);

/// A new mapping. The quicker protocols are asked while the router is searched for by the other.
async fn acquire(spot: Spot) -> Result<(Mapping, Granted), String> {
    let Spot { inside, gateway } = spot;
    let mut nonce = [0; 12];
    random(&mut nonce)?;
    let mut quick = pmp::Mapping { version: pmp::Version::Pcp, gateway, inside, nonce, port: inside.port() };
    let mut search = std::pin::pin!(upnp::find(*inside.ip(), gateway));
    let mut found = None;
    let refusal = {
        let mut request = std::pin::pin!(quick.request());
        loop {
            tokio::select! {
                result = &mut request => match result {
                    Ok(granted) => break Ok(granted),
                    Err(refusal) => break Err(refusal),
                },
                service = &mut search, if found.is_none() => found = Some(service),
            }
        }
    };
    let refusal = match refusal {
        Ok(granted) => return Ok((Mapping::Pmp(quick), granted)),
        Err(refusal) => refusal,
    };
    let service = match found {
        Some(service) => service,
        None => search.await,
    };
    match service {
        Some(service) => {
            service.map(inside).await.map(|(mapping, granted)| (Mapping::Upnp(mapping), granted))
        }
        None => Err(refusal.to_string()),
    }
}

impl Shared {
    /// Where a router could be asked. `None`: there is nobody to ask, or nothing to ask for.
    fn spot(&self) -> Option<Spot> {
        let gateway = platform::gateway()?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.connect((gateway, 9)).ok()?;
        let IpAddr::V4(own) = socket.local_addr().ok()?.ip() else { return None };
        let bound = self.bound.ip();
        let serves = bound.is_unspecified() || bound == IpAddr::V4(own);
        // A public address needs no mapping.
        (serves && is_local(own.into()))
            .then_some(Spot { inside: SocketAddrV4::new(own, self.bound.port()), gateway })
    }

    /// Keeps a port of the router until the node stops.
    pub(crate) async fn keep_mapped(self: Arc<Self>) {
        if !self.config.port_mapping || self.never_direct() || self.alone() {
            return;
        }
        let mut network = self.network.subscribe();
        let mut pause = RETRY.0;
        loop {
            network.mark_unchanged();
            let next = match self.map().await {
                Ok(Some(lifetime)) => {
                    pause = RETRY.0;
                    Some((lifetime / 2).clamp(SHORTEST, RENEW))
                }
                Ok(None) => None,
                Err(cause) => {
                    tracing::debug!(%cause, "no port of the router");
                    let next = pause;
                    pause = (pause * 2).min(RETRY.1);
                    Some(next)
                }
            };
            let wait = async {
                match next {
                    Some(next) => tokio::time::sleep(crate::jitter(next)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                _ = network.changed() => pause = RETRY.0,
                () = self.remap.notified() => pause = RETRY.0,
            }
        }
    }

    /// Asks for a mapping, or to go on with the one there is: how long it lives.
    async fn map(&self) -> Result<Option<Duration>, String> {
        let mut held = self.mapper.0.lock().await;
        let Some(spot) = self.spot() else {
            *held = None;
            self.mapped(None);
            return Ok(None);
        };
        // One from another network is gone with it.
        let before = held.take().filter(|(at, _)| *at == spot);
        let renewed = match before {
            Some((_, mut mapping)) => mapping.request().await.ok().map(|granted| (mapping, granted)),
            None => None,
        };
        let made = match renewed {
            Some(made) => Ok(made),
            None => acquire(spot).await,
        };
        let (mapping, granted) = made.inspect_err(|_| self.mapped(None))?;
        if is_local(granted.at.ip()) || granted.at.ip().is_unspecified() || granted.at.port() == 0 {
            mapping.release().await;
            self.mapped(None);
            return Err(format!("the router itself is behind a NAT, at {}", granted.at.ip()));
        }
        self.mapped(Some((mapping.protocol(), granted.at)));
        *held = Some((spot, mapping));
        Ok(Some(granted.lifetime))
    }

    /// Tells the others what there is now.
    fn mapped(&self, now: Option<(&'static str, SocketAddr)>) {
        if self.state(|s| std::mem::replace(&mut s.mapping, now)) == now {
            return;
        }
        match now {
            Some((protocol, at)) => tracing::info!(%protocol, %at, "the router maps a port to this node"),
            None => tracing::info!("the router maps no port to this node any more"),
        }
        self.place_changed();
    }

    /// Gives the mapping back, when the node stops.
    pub(crate) async fn unmap(&self) {
        let release = async {
            if let Some((_, mapping)) = self.mapper.0.lock().await.take() {
                mapping.release().await;
            }
        };
        let _ = timeout(RELEASE, release).await;
    }
}

/// What routers say, for the fuzz targets.
#[cfg(feature = "fuzzing")]
pub(crate) fn answers(bytes: &[u8]) {
    let mapping = pmp::Mapping {
        version: pmp::Version::Pcp,
        gateway: Ipv4Addr::new(192, 168, 1, 1),
        inside: SocketAddrV4::new(Ipv4Addr::new(192, 168, 1, 7), 4000),
        nonce: [7; 12],
        port: 4000,
    };
    let _ =
        (pmp::read_pcp(bytes, &mapping), pmp::read_address(bytes, &mapping), pmp::read_pmp(bytes, &mapping));
    let at = SocketAddr::from(([192, 168, 1, 1], 5000));
    let _ = upnp::read_search(bytes, at.ip());
    if let Some(answer) = http::parse(bytes) {
        let _ = upnp::read_description(&answer.body, at);
    }
}
