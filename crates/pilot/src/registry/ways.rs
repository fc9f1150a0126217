//! The ways to the registry: as configured, through a proxy, and by the port that networks without UDP leave open.
//!
//! A network that lets out little else than HTTPS also blocks the registry's own port. So beside the configured way there
//! may be a second: the listener with TLS that the registry told of (docs/extensions.md, "compat"). It is never trusted
//! with less than the configuration asks for.

use super::{Io, client::plain, connect, connect_tls, tls};
use crate::config::RegistryTls;
use crate::lock;
use crate::proxy::{Proxies, ProxyUrl};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinSet;

/// The next way is tried this long after the one before, also while that is still under way.
const STAGGER: Duration = Duration::from_secs(1);

/// One way.
#[derive(Clone)]
struct Way {
    host: String,
    port: u16,
    tls: Option<Arc<rustls::ClientConfig>>,
    proxy: Option<ProxyUrl>,
}

/// All ways, and which one worked last.
pub(super) struct Ways {
    proxies: Proxies,
    /// Whether the environment's proxy and the second way count.
    flexible: bool,
    configured: Vec<Way>,
    trust: Option<RegistryTls>,
    second: Mutex<Option<Way>>,
    last: Mutex<usize>,
    /// Where it went.
    reached: Mutex<Option<IpAddr>>,
}

impl Ways {
    /// `flexible`: all ways may be tried. `forced`: the network is known to let out HTTPS alone.
    pub fn new(
        host: &str,
        port: u16,
        trust: Option<&RegistryTls>,
        proxies: &Proxies,
        flexible: bool,
        forced: bool,
    ) -> Result<Ways, String> {
        let tls = trust.map(tls::config).transpose()?;
        let secure = tls.is_some();
        let way = |proxy: Option<&ProxyUrl>| Way {
            host: host.to_owned(),
            port,
            tls: tls.clone(),
            proxy: proxy.cloned(),
        };
        let fixed = proxies.fixed(host);
        let of_environment =
            proxies.secure(host, port).filter(|_| fixed.is_none() && secure && (flexible || forced));
        let configured = match of_environment {
            Some(proxy) if forced => vec![way(Some(proxy))],
            Some(proxy) => vec![way(None), way(Some(proxy))],
            None => vec![way(fixed)],
        };
        Ok(Ways {
            proxies: proxies.clone(),
            flexible,
            configured,
            trust: trust.cloned(),
            second: Mutex::default(),
            last: Mutex::default(),
            reached: Mutex::default(),
        })
    }

    /// The registry has a listener with TLS there, whose certificate is that if the configuration names none.
    pub fn set_second(&self, host: &str, port: u16, fingerprint: Option<&str>) {
        let named =
            fingerprint.map_or(RegistryTls::System, |digest| RegistryTls::PinnedOrSystem(digest.to_owned()));
        let trust = self.trust.clone().unwrap_or(named);
        let same =
            self.configured.iter().any(|way| way.tls.is_some() && way.host == host && way.port == port);
        let Ok(config) = tls::config(&trust) else { return };
        let proxy = self.proxies.secure(host, port).cloned();
        let way = Way { host: host.to_owned(), port, tls: Some(config), proxy };
        *lock(&self.second) = (self.flexible && !same).then_some(way);
    }

    /// The first way that works; the error is that of the configured one, or what a proxy asks for.
    pub async fn open(&self, limit: Duration) -> Result<Box<dyn Io>, String> {
        let late = tokio::time::Instant::now() + limit;
        let mut ways: Vec<Way> = self.configured.clone();
        ways.extend(lock(&self.second).clone());
        let mut order: Vec<usize> = (0..ways.len()).collect();
        let last = *lock(&self.last);
        order.sort_by_key(|n| *n != last);
        let mut under_way = JoinSet::new();
        let mut waiting = order.into_iter();
        let mut errors: Vec<(usize, String)> = Vec::new();
        loop {
            if let Some(n) = waiting.next() {
                let (way, proxies) = (ways[n].clone(), self.proxies.clone());
                under_way.spawn(async move { (n, way.open(&proxies).await) });
            }
            loop {
                let ended = tokio::select! {
                    ended = under_way.join_next() => ended,
                    () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => break,
                    () = tokio::time::sleep_until(late) => {
                        errors.push((usize::MAX, format!("timed out after {} s", limit.as_secs())));
                        None
                    }
                };
                match ended {
                    Some(Ok((n, Ok((stream, at))))) => {
                        *lock(&self.last) = n;
                        *lock(&self.reached) = at;
                        return Ok(stream);
                    }
                    Some(Ok((n, Err(cause)))) => errors.push((n, cause)),
                    Some(Err(_)) => {}
                    None => {
                        // A proxy's refusal says what to do; else the configured way's cause is what the user knows of.
                        let told = errors.iter().find(|(_, cause)| cause.contains("(407)"));
                        let told = told.or_else(|| errors.iter().min_by_key(|(n, _)| *n));
                        return Err(
                            told.map_or_else(|| "no way there".to_owned(), |(_, cause)| cause.clone())
                        );
                    }
                }
                if waiting.len() > 0 {
                    break;
                }
            }
        }
    }

    /// The address of the registry's that the last connection went to, if that is known.
    pub fn reached(&self) -> Option<IpAddr> {
        *lock(&self.reached)
    }

    /// Whether some of them take longer than a plain connection.
    pub fn is_long(&self) -> bool {
        self.configured.len() > 1
            || self.configured.iter().any(|way| way.proxy.is_some())
            || lock(&self.second).is_some()
    }
}

impl Way {
    /// The connection, and where it goes unless a proxy alone knows that.
    async fn open(self, proxies: &Proxies) -> Result<(Box<dyn Io>, Option<IpAddr>), String> {
        let (stream, at): (Box<dyn Io>, _) = match &self.proxy {
            Some(proxy) => (proxies.connect(Some(proxy), &self.host, self.port).await?, None),
            None => {
                let stream = connect::tcp(&self.host, self.port).await.map_err(|e| plain(&e))?;
                let at = stream.peer_addr().ok().map(|at| at.ip().to_canonical());
                (Box::new(stream), at)
            }
        };
        match self.tls {
            Some(config) => Ok((connect_tls(config, &self.host, stream).await?, at)),
            None => Ok((stream, at)),
        }
    }
}
