//! Changes of the network around the node, and sleep of the machine: everything that depends on where we are is done
//! anew within a second (spec 04 section 14).
//!
//! The system tells of changes of interfaces, addresses and routes, so a node without any costs nothing; where it does not, the
//! interfaces are looked at once a second. Sleep shows in the clocks, once a second.

use crate::command::Command;
use crate::platform;
use crate::shared::Shared;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::UdpSocket as EventSocket;
use tokio::time::MissedTickBehavior;

/// The clocks are compared this often, and the interfaces where the system tells nothing.
const TICK: Duration = Duration::from_secs(1);
/// Changes come in bursts; what follows within this time is taken together.
const SETTLE: Duration = Duration::from_millis(100);
/// The clocks may drift apart by this much between two looks, or a look come late by it, before that counts as sleep: less
/// than any mapping of a NAT lives, more than a busy machine delays a task.
const SLEEP: Duration = Duration::from_secs(10);
/// Addresses in documentation networks: the system says from where it would send to the Internet. Nothing is sent.
const ANYWHERE: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// The addresses this host sends to the Internet from, by family: they change with the default route.
fn sources() -> [Option<IpAddr>; 2] {
    ANYWHERE.map(|far| {
        let any: IpAddr =
            if far.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(SocketAddr::new(far, 9)).ok()?;
        socket.local_addr().ok().map(|at| at.ip())
    })
}

/// What the clocks said together.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    /// Stands still while the machine sleeps.
    monotonic: Instant,
    /// Goes on while it sleeps; somebody may set it.
    wall: SystemTime,
    /// Goes on while it sleeps; nobody can set it. `None`: the system has no such clock.
    boot: Option<Duration>,
}

impl Clocks {
    fn now() -> Clocks {
        Clocks { monotonic: Instant::now(), wall: SystemTime::now(), boot: platform::since_boot() }
    }

    /// How long the machine, or this process, slept between two looks that should be [`TICK`] apart.
    fn slept(self, since: Clocks) -> Option<Duration> {
        let passed = self.monotonic.saturating_duration_since(since.monotonic);
        let beyond = match (self.boot, since.boot) {
            (Some(now), Some(before)) => now.saturating_sub(before).saturating_sub(passed),
            // A clock set back says nothing; one set ahead looks like sleep, and costs some packets.
            _ => self.wall.duration_since(since.wall).unwrap_or_default().saturating_sub(passed),
        };
        // A machine whose monotonic clock goes on, or a stopped process, shows by the late look.
        let slept = beyond + passed.saturating_sub(TICK);
        // A suspended virtual machine may have all its clocks stand still until the wall clock is set.
        let jump = self.wall.duration_since(since.wall).unwrap_or_default().saturating_sub(passed);
        Some(slept.max(jump)).filter(|slept| *slept >= SLEEP)
    }
}

impl Shared {
    /// Follows the network until the node stops.
    pub(crate) async fn keep_watching(self: Arc<Self>) {
        if self.alone() || !self.config.watch_network {
            return;
        }
        let news = match platform::network_events().and_then(EventSocket::from_std) {
            Ok(news) => Some(news),
            Err(error) => {
                tracing::debug!(%error, "the system does not tell of network changes; looking once a second");
                None
            }
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut clocks = Clocks::now();
        let mut from = sources();
        self.look_at_interfaces();
        loop {
            let told = tokio::select! {
                () = told(news.as_ref()) => true,
                _ = tick.tick() => false,
            };
            let now = Clocks::now();
            let slept = now.slept(clocks);
            clocks = now;
            if told {
                tokio::time::sleep(SETTLE).await;
                // What came meanwhile is seen below.
                news.as_ref().map(drain);
                clocks = Clocks::now();
            }
            let mut changed = false;
            if told || news.is_none() || slept.is_some() {
                changed = self.look_at_interfaces();
                let before = std::mem::replace(&mut from, sources());
                changed |= before != from;
                if changed {
                    self.moved(before, from);
                }
            }
            if let Some(slept) = slept {
                tracing::info!(seconds = slept.as_secs(), "the machine slept");
                self.publish("tunnel.host_resumed", json!({"slept_secs": slept.as_secs()}));
            }
            if changed || slept.is_some() {
                self.anew();
            }
        }
    }

    fn moved(&self, before: [Option<IpAddr>; 2], now: [Option<IpAddr>; 2]) {
        let text = |all: [Option<IpAddr>; 2]| {
            all.into_iter().flatten().map(|ip| ip.to_string()).collect::<Vec<_>>().join(", ")
        };
        let (previous, current) = (text(before), text(now));
        let addresses = self.state(|s| s.interfaces.len());
        tracing::info!(%previous, %current, addresses, "the network changed");
        self.publish(
            "tunnel.addr_changed",
            json!({"reason": "local_address", "previous": previous, "current": current}),
        );
        let bound = self.bound.ip();
        if !bound.is_unspecified() && self.state(|s| s.interfaces.is_empty()) {
            self.warn(format!(
                "the listen address {bound} is gone from this host: nobody reaches this node until it is back; listen on \
                 all addresses (`--listen :{}`) to follow the network",
                self.bound.port()
            ));
        }
    }

    /// We are somewhere else, or were away: nothing that was opened from here before is to be relied on.
    fn anew(&self) {
        self.registry.forget_connections();
        self.directory.forget_routes();
        self.command(Command::NetworkChanged);
        self.place_changed();
        self.network.send_modify(|changes| *changes = changes.wrapping_add(1));
        self.reregister.notify_one();
    }
}

/// Resolves when the system tells of a change; never without it.
async fn told(news: Option<&EventSocket>) {
    let Some(news) = news else { return std::future::pending().await };
    while news.readable().await.is_ok() {
        if drain(news) {
            return;
        }
    }
    std::future::pending().await
}

/// Reads what there is; true: there was something. Only that something happened matters: what is now is looked up.
fn drain(news: &EventSocket) -> bool {
    let mut buffer = [0; 8192];
    let mut any = false;
    loop {
        match news.try_recv(&mut buffer) {
            Ok(0) => return any,
            Ok(_) => any = true,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            // More was told than fits: some of it is lost, and that is news as well.
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => any = true,
            Err(_) => return any,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn later(clocks: Clocks, monotonic: Duration, wall: Duration, boot: Option<Duration>) -> Clocks {
        Clocks {
            monotonic: clocks.monotonic + monotonic,
            wall: clocks.wall + wall,
            boot: clocks.boot.zip(boot).map(|(at, more)| at + more),
        }
    }

    #[test]
    fn sleep_shows_in_any_clock_and_a_busy_machine_is_no_sleep() {
        let start = Clocks { boot: Some(S(1000)), ..Clocks::now() };
        let boot = |monotonic, wall, boot| later(start, monotonic, wall, Some(boot)).slept(start);
        assert_eq!(boot(S(1), S(1), S(1)), None);
        assert_eq!(boot(S(4), S(4), S(4)), None, "late");
        assert_eq!(boot(S(1), S(601), S(601)), Some(S(600)), "suspended");
        assert_eq!(boot(S(601), S(601), S(601)), Some(S(600)), "stopped");
        assert_eq!(boot(S(1), S(601), S(1)), Some(S(600)), "a virtual machine's clock was set");
        assert_eq!(boot(S(1), S(3), S(1)), None, "the clock was corrected");
        let wall = Clocks { boot: None, ..start };
        assert_eq!(later(wall, S(1), S(601), None).slept(wall), Some(S(600)));
        let back = Clocks { wall: start.wall - S(600), ..later(start, S(1), S(1), Some(S(1))) };
        assert_eq!(back.slept(start), None, "set back");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_system_tells_of_changes() {
        let events = EventSocket::from_std(platform::network_events().unwrap()).unwrap();
        drain(&events);
        assert!(platform::since_boot().unwrap() > Duration::ZERO);
    }
}
