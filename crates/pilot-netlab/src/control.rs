//! A laboratory that other processes of the same user may enter: `up` in one terminal, `exec` in another. The
//! meeting point is a socket without a file, which ends with its process.

use crate::host::Host;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Command;

/// The laboratory under this name, if it is up.
fn address(lab: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("pilot-netlab/{lab}"))
}

/// The way in to a laboratory of this process.
pub struct Door(UnixListener);

impl Door {
    /// Takes a name for the laboratory.
    ///
    /// # Errors
    ///
    /// If a laboratory of that name is up already.
    pub fn open(lab: &str) -> io::Result<Door> {
        let listener = UnixListener::bind_addr(&address(lab)?).map_err(|e| match e.kind() {
            io::ErrorKind::AddrInUse => {
                io::Error::other(format!("laboratory {lab:?} is up already; choose another --name"))
            }
            _ => e,
        })?;
        Ok(Door(listener))
    }

    /// Lets other processes enter these hosts, until this one ends.
    pub fn serve(self, hosts: &[Host]) {
        for stream in self.0.incoming() {
            // One line in, one line out; who hangs up early misses the answer and nothing else.
            let _ = stream.and_then(|stream| answer(stream, hosts));
        }
    }
}

fn answer(mut stream: UnixStream, hosts: &[Host]) -> io::Result<()> {
    let mut name = String::new();
    BufReader::new(&stream).read_line(&mut name)?;
    match hosts.iter().find(|h| h.name() == name.trim_end()) {
        Some(host) => {
            let [network, processes, mounts] = host.namespaces();
            writeln!(stream, "ok {network} {processes} {mounts}")
        }
        None => {
            let names: Vec<_> = hosts.iter().map(Host::name).collect();
            writeln!(stream, "no host {:?}; there are: {}", name.trim_end(), names.join(", "))
        }
    }
}

/// Moves the calling thread to a host, so that its children begin there.
fn enter(lab: &str, host: &str) -> io::Result<()> {
    let mut stream = UnixStream::connect_addr(&address(lab)?).map_err(|e| {
        io::Error::other(format!("no laboratory {lab:?} is up ({e}); start one with: netlab up"))
    })?;
    writeln!(stream, "{host}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let Some(paths) = line.trim_end().strip_prefix("ok ") else {
        return Err(io::Error::other(line.trim_end().to_owned()));
    };
    let spaces = paths.split(' ').map(std::fs::File::open).collect::<io::Result<Vec<_>>>()?;
    crate::sys::unshare(UnshareFlags::FS)?;
    let kinds = [LinkNameSpaceType::Network, LinkNameSpaceType::ProcessID, LinkNameSpaceType::Mount];
    for (space, kind) in spaces.iter().zip(kinds) {
        move_into_link_name_space(space.as_fd(), Some(kind))?;
    }
    Ok(())
}

/// A command that will run on a host of a laboratory that is up, in the working directory of this process. The
/// calling thread moves there, too.
///
/// # Errors
///
/// If there is no such laboratory or host, or without root.
pub fn command_on(lab: &str, host: &str, program: &str) -> io::Result<Command> {
    let directory = std::env::current_dir()?;
    enter(lab, host)?;
    let mut command = Command::new(program);
    command.current_dir(directory);
    Ok(command)
}
