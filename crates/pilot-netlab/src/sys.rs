//! The system calls the standard library and `rustix` offer only as unsafe: the one place of this crate with
//! unsafe code.
#![allow(unsafe_code)]

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::thread::UnshareFlags;
use std::io;
use std::os::fd::OwnedFd;

/// Longest name of an interface, in bytes, without the closing zero (the kernel's IFNAMSIZ less one).
pub(crate) const INTERFACE_NAME_MAX: usize = 15;

const TUNSETIFF: Opcode = rustix::ioctl::opcode::write::<std::ffi::c_int>(b'T', 202);
/// Layer 3: packets begin with their IP header.
const IFF_TUN: u16 = 0x0001;
/// No four bytes of flags and protocol before each packet.
const IFF_NO_PI: u16 = 0x1000;

/// The kernel's `struct ifreq`, as far as TUNSETIFF reads it: a name, flags, and padding up to its size.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; INTERFACE_NAME_MAX + 1],
    flags: u16,
    rest: [u8; 22],
}

/// Moves the calling thread into new namespaces of these kinds.
pub(crate) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "file descriptors stay shared");
    // SAFETY: what makes unshare unsafe is a file descriptor table that is no longer shared with the other
    // threads; the assertion above excludes that.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Creates a TUN interface in the network namespace of the calling thread. It lives as long as the descriptor,
/// which does not block.
///
/// # Errors
///
/// Without /dev/net/tun, CAP_NET_ADMIN, or with a name that is in use.
pub(crate) fn create_tun(name: &str) -> io::Result<OwnedFd> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > INTERFACE_NAME_MAX || bytes.contains(&0) {
        return Err(io::Error::other(format!("{name:?} is no name for an interface (1 to 15 bytes)")));
    }
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).map_err(|e| {
        io::Error::other(format!(
            "/dev/net/tun cannot be opened ({e}): root and a kernel with TUN are needed"
        ))
    })?;
    let mut request =
        InterfaceRequest { name: [0; INTERFACE_NAME_MAX + 1], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    request.name[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: TUNSETIFF reads (and writes back) one `struct ifreq`, 40 bytes on every 64-bit Linux; the request
    // is that large, laid out like it, and lives on this stack during the call.
    unsafe { ioctl(&fd, Setter::<TUNSETIFF, InterfaceRequest>::new(request)) }?;
    Ok(fd)
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);
