//! Hosts: a network namespace each, with interfaces on networks and processes inside.

use crate::fabric::Fabric;
use crate::link::{Duplex, LinkCounts};
use crate::prefix::Prefix;
use crate::spaces::{Processes, Space};
use crate::sys;
use crate::world::{NetworkId, PortId};
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Packets an interface queues towards the links. Large, so that the loss on a link is the loss asked for.
const TX_QUEUE: usize = 10_000;
/// MTU of an interface, in bytes, unless set otherwise.
const MTU: usize = 1500;
/// How long the kernel may take to use a new address.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(10);

/// A host. Clones are handles to the same host; it lives as long as the laboratory.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    space: Space,
    fabric: Arc<Fabric>,
    interfaces: Mutex<Vec<Interface>>,
    processes: Arc<Processes>,
}

#[derive(Clone)]
struct Interface {
    name: String,
    port: PortId,
    network: NetworkId,
    addrs: Vec<IpAddr>,
}

/// Which address families an interface gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// What the network has.
    Dual,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

/// Describes a host before it exists; see [`Lab::host`](crate::Lab::host).
#[must_use]
pub struct HostBuilder {
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) processes: Arc<Processes>,
    pub(crate) name: String,
    pub(crate) interfaces: Vec<(NetworkId, Duplex)>,
    pub(crate) families: Families,
}

impl HostBuilder {
    /// Plugs the host into a network through a link. The first interface is `eth0` and has the default route.
    pub fn on(mut self, network: NetworkId, link: impl Into<Duplex>) -> HostBuilder {
        self.interfaces.push((network, link.into()));
        self
    }

    /// Gives the host IPv4 addresses only.
    pub fn v4_only(mut self) -> HostBuilder {
        self.families = Families::V4;
        self
    }

    /// Gives the host IPv6 addresses only.
    pub fn v6_only(mut self) -> HostBuilder {
        self.families = Families::V6;
        self
    }

    /// Makes the host.
    ///
    /// # Errors
    ///
    /// Without the privilege, `ip` or /dev/net/tun.
    pub fn start(self) -> io::Result<Host> {
        let space = Space::new(&self.name, &self.processes)?;
        let host = Host {
            inner: Arc::new(Inner {
                name: self.name,
                space,
                fabric: self.fabric,
                interfaces: Mutex::new(Vec::new()),
                processes: self.processes,
            }),
        };
        host.ip_batch("link set dev lo up\n")?;
        for (network, link) in self.interfaces {
            host.attach(network, link, self.families)?;
        }
        Ok(host)
    }
}

impl Host {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Plugs the host into one more network, while it runs; the new interface is `eth<n>`.
    ///
    /// # Errors
    ///
    /// As [`HostBuilder::start`].
    pub fn attach(&self, network: NetworkId, link: impl Into<Duplex>, families: Families) -> io::Result<()> {
        self.plug(network, link.into(), families, false)
    }

    /// Plugs the host into a network that has no way out yet, as that way.
    pub(crate) fn attach_as_gateway(&self, network: NetworkId) -> io::Result<()> {
        self.plug(network, Duplex::default(), Families::Dual, true)
    }

    fn plug(&self, network: NetworkId, link: Duplex, families: Families, gateway: bool) -> io::Result<()> {
        let index = self.interfaces().len();
        let name = format!("eth{index}");
        let device = name.clone();
        let tun = self.inner.space.on_thread(move || sys::create_tun(&device))??;
        let (port, addrs, prefixes) = self.inner.fabric.with(move |state| {
            let port = state.world.add_port(network, link);
            if gateway {
                state.world.set_gateway(port);
            } else {
                for addr in state.world.assign(network) {
                    let wanted = match families {
                        Families::Dual => true,
                        Families::V4 => addr.is_ipv4(),
                        Families::V6 => addr.is_ipv6(),
                    };
                    state.world.set_owner(port, addr, wanted);
                }
            }
            let addrs = state.world.addrs(port);
            let net = state.world.network(network);
            let prefixes = [net.v4, net.v6];
            state.connect(port, tun).map(|()| (port, addrs, prefixes))
        })?;
        // In this order: an interface that is up has made itself a link-local address already.
        let mut batch = format!("link set dev {name} txqueuelen {TX_QUEUE} mtu {MTU} addrgenmode none\n");
        batch.push_str(&format!("link set dev {name} up\n"));
        for (addr, prefix) in with_prefixes(&addrs, prefixes) {
            batch.push_str(&add_address(addr, prefix, &name));
            if index == 0 {
                batch.push_str(&set_default_route(prefix, &name));
            }
        }
        self.ip_batch(&batch)?;
        self.wait_for_addresses(&addrs)?;
        self.interfaces().push(Interface { name, port, network, addrs });
        Ok(())
    }

    /// Every address, in the order of the interfaces.
    pub fn addrs(&self) -> Vec<IpAddr> {
        self.interfaces().iter().flat_map(|i| i.addrs.clone()).collect()
    }

    /// The first IPv4 address.
    ///
    /// # Panics
    ///
    /// If it has none.
    pub fn v4(&self) -> Ipv4Addr {
        let found = self.addrs().into_iter().find_map(|a| if let IpAddr::V4(a) = a { Some(a) } else { None });
        found.unwrap_or_else(|| panic!("host {} has no IPv4 address", self.name()))
    }

    /// The first IPv6 address.
    ///
    /// # Panics
    ///
    /// If it has none.
    pub fn v6(&self) -> Ipv6Addr {
        let found = self.addrs().into_iter().find_map(|a| if let IpAddr::V6(a) = a { Some(a) } else { None });
        found.unwrap_or_else(|| panic!("host {} has no IPv6 address", self.name()))
    }

    /// The link of interface `n`.
    pub fn link(&self, n: usize) -> Duplex {
        let port = self.port(n);
        self.inner.fabric.with(move |state| state.world.link(port))
    }

    /// Changes the link of interface `n`; what is under way arrives as it would have.
    pub fn set_link(&self, n: usize, link: impl Into<Duplex>) {
        let (port, link) = (self.port(n), link.into());
        self.inner.fabric.with(move |state| state.world.set_link(port, link));
    }

    /// What the link of interface `n` did so far: (towards the network, from it).
    pub fn counts(&self, n: usize) -> (LinkCounts, LinkCounts) {
        let port = self.port(n);
        self.inner.fabric.with(move |state| state.world.counts(port))
    }

    /// Gives interface `n` the next free addresses of its network in place of those it has, as when a lease
    /// is renewed: sockets bound to an old one stay so and reach nobody.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn change_address(&self, n: usize) -> io::Result<()> {
        let old = self.interfaces()[n].clone();
        let (port, network, gone) = (old.port, old.network, old.addrs.clone());
        let (addrs, prefixes) = self.inner.fabric.with(move |state| {
            let mut addrs = state.world.assign(network);
            addrs.retain(|a| gone.iter().any(|g| g.is_ipv4() == a.is_ipv4()));
            gone.iter().for_each(|a| state.world.set_owner(port, *a, false));
            addrs.iter().for_each(|a| state.world.set_owner(port, *a, true));
            let net = state.world.network(network);
            (addrs, [net.v4, net.v6])
        });
        let mut batch = format!("addr flush dev {}\n", old.name);
        for (addr, prefix) in with_prefixes(&addrs, prefixes) {
            batch.push_str(&add_address(addr, prefix, &old.name));
            if n == 0 {
                batch.push_str(&set_default_route(prefix, &old.name));
            }
        }
        self.ip_batch(&batch)?;
        self.wait_for_addresses(&addrs)?;
        self.interfaces()[n].addrs = addrs;
        Ok(())
    }

    /// Sends everything that is for no network of the host through interface `n`, as when a machine goes from cable
    /// to radio. Packets keep the source address their socket is bound to.
    ///
    /// # Errors
    ///
    /// If `ip` fails.
    pub fn prefer(&self, n: usize) -> io::Result<()> {
        let interface = self.interfaces()[n].clone();
        let network = interface.network;
        let prefixes = self.inner.fabric.with(move |state| {
            let net = state.world.network(network);
            [net.v4, net.v6]
        });
        let found = with_prefixes(&interface.addrs, prefixes);
        self.ip_batch(&found.iter().map(|(_, p)| set_default_route(*p, &interface.name)).collect::<String>())
    }

    /// Runs something in the host's network on a thread of its own, and returns its result. Sockets made there
    /// stay in that network whoever uses them later, and so do threads started there.
    ///
    /// # Errors
    ///
    /// If the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        self.inner.space.run(f)
    }

    /// Starts a process on the host. It, and whatever it starts, ends with the laboratory at the latest.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn spawn(&self, mut command: Command) -> io::Result<Process> {
        if command.get_current_dir().is_none() {
            // Entering the laboratory's mounts has moved the thread to the root directory.
            command.current_dir(std::env::current_dir()?);
        }
        let child = self.inner.space.on_thread(move || command.spawn())??;
        Ok(Process(child))
    }

    /// Runs a process on the host to its end and returns what it wrote.
    ///
    /// # Errors
    ///
    /// If it cannot be started or waited for.
    pub fn output(&self, mut command: Command) -> io::Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command)?.wait_with_output()
    }

    /// Waits until the kernel takes packets for new addresses. For IPv6 that is a little after they are set: the
    /// route to a local address is made by a work queue.
    fn wait_for_addresses(&self, addrs: &[IpAddr]) -> io::Result<()> {
        let routes: Vec<String> = addrs.iter().filter_map(local_route).collect();
        let deadline = Instant::now() + ADDRESS_PATIENCE;
        loop {
            let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/ipv6_route"))??;
            if routes.iter().all(|r| table.lines().any(|line| line.starts_with(r))) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let why = format!("host {}: the kernel did not take the addresses {addrs:?}", self.name());
                return Err(io::Error::other(why));
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Where other processes of this user find its namespaces, while this process lives: of networks, processes
    /// and mounts.
    pub(crate) fn namespaces(&self) -> [String; 3] {
        let (processes, mounts) = self.inner.processes.namespaces();
        [self.inner.space.network(), processes, mounts]
            .map(|fd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()))
    }

    /// Runs something on the thread that is in all namespaces of the host.
    pub(crate) fn on_thread<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        self.inner.space.on_thread(f)
    }

    fn port(&self, n: usize) -> PortId {
        self.interfaces()[n].port
    }

    fn interfaces(&self) -> std::sync::MutexGuard<'_, Vec<Interface>> {
        self.inner.interfaces.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs lines of `ip -batch`.
    fn ip_batch(&self, lines: &str) -> io::Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child =
            self.spawn(command).map_err(|e| io::Error::other(format!("ip (package iproute2): {e}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(lines.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(io::Error::other(format!("host {}: ip: {why} (in {lines:?})", self.name())))
    }
}

/// How the kernel's table of IPv6 routes begins the line of a local address.
fn local_route(addr: &IpAddr) -> Option<String> {
    match addr {
        IpAddr::V4(_) => None,
        IpAddr::V6(a) => Some(format!("{:032x} 80 ", a.to_bits())),
    }
}

fn with_prefixes(addrs: &[IpAddr], prefixes: [Option<Prefix>; 2]) -> Vec<(IpAddr, Prefix)> {
    let find =
        |a: &IpAddr| prefixes.into_iter().flatten().find(|p| p.is_v4() == a.is_ipv4()).map(|p| (*a, p));
    addrs.iter().filter_map(find).collect()
}

fn add_address(addr: IpAddr, prefix: Prefix, device: &str) -> String {
    let nodad = if addr.is_ipv6() { " nodad" } else { "" };
    format!("addr add {addr}/{} dev {device}{nodad}\n", prefix.len())
}

fn set_default_route(prefix: Prefix, device: &str) -> String {
    format!("route replace default via {} dev {device}\n", prefix.nth(1))
}

/// A process on a host; killed and waited for when dropped.
pub struct Process(Child);

impl Process {
    /// Waits for the end and returns what it wrote to the pipes it was given.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        drop(self.0.stdin.take());
        let (out, err) = (self.0.stdout.take(), self.0.stderr.take());
        std::thread::scope(|scope| {
            let errors =
                scope.spawn(|| err.map_or(Ok(0), |mut e| io::Read::read_to_end(&mut e, &mut stderr)));
            if let Some(mut out) = out {
                io::Read::read_to_end(&mut out, &mut stdout)?;
            }
            errors.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        Ok(Output { status: self.0.wait()?, stdout, stderr })
    }
}

impl Deref for Process {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
