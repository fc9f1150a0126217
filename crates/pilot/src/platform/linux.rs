use super::Complaint;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Sets both socket buffers to `bytes`, beyond the system's limit where we may.
#[allow(unsafe_code)]
pub(crate) fn grow_buffers(socket: BorrowedFd<'_>, bytes: usize) {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    for (forced, ordinary) in
        [(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF), (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF)]
    {
        for option in [forced, ordinary] {
            // SAFETY: the descriptor is open for the call, `value` is a c_int and its size is given.
            let done = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
            if done == 0 {
                break;
            }
        }
    }
}

/// The next entry of the socket's error queue: `Ok(Some)` if the network says something of a destination, `Ok(None)` if it
/// is something else. `Err`: the queue is empty.
#[allow(unsafe_code)]
pub(crate) fn next_error(socket: BorrowedFd<'_>) -> io::Result<Option<Complaint>> {
    /// Control data; the kernel sends one error record and its address.
    #[repr(align(8))]
    struct Control([u8; 256]);
    let mut control = Control([0; 256]);
    let mut byte = [0u8; 1];
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    let mut found = None;
    // SAFETY: all pointers in `header` are to live, writable memory of the sizes given: `storage` is what socket2
    // lends for an address of up to `len` bytes, the rest are locals that outlive the call.
    let ((), name) = unsafe {
        socket2::SockAddr::try_init(|storage, len| {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_name = storage.cast();
            header.msg_namelen = *len;
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len();
            let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
            if libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) < 0 {
                return Err(io::Error::last_os_error());
            }
            *len = header.msg_namelen;
            let mut record = libc::CMSG_FIRSTHDR(&raw const header);
            // SAFETY: the CMSG functions walk the records the kernel wrote; data is read unaligned, and only if
            // the record is long enough.
            while let Some(r) = record.as_ref() {
                let kind = (r.cmsg_level, r.cmsg_type);
                let size = libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as libc::c_uint) as usize;
                if (kind == (libc::SOL_IP, libc::IP_RECVERR) || kind == (libc::SOL_IPV6, libc::IPV6_RECVERR))
                    && r.cmsg_len >= size
                {
                    let data = libc::CMSG_DATA(record).cast::<libc::sock_extended_err>();
                    found = Some(data.read_unaligned());
                }
                record = libc::CMSG_NXTHDR(&raw const header, record);
            }
            Ok(())
        })?
    };
    let (Some(error), Some(to)) = (found, name.as_socket()) else { return Ok(None) };
    let network = matches!(error.ee_origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6);
    Ok(match i32::try_from(error.ee_errno) {
        Ok(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN) => {
            Some(Complaint::Unreachable(to))
        }
        // Our own host says the same of datagrams that the send call has already reported.
        Ok(libc::EMSGSIZE) if network => {
            Some(Complaint::TooBig { to, mtu: usize::try_from(error.ee_info).unwrap_or(usize::MAX) })
        }
        _ => None,
    })
}

/// Gives free memory back to the system; the allocator keeps the most it ever needed otherwise. Takes milliseconds.
#[allow(unsafe_code)]
pub(crate) fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim has no preconditions and takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// See [`crate::tune_allocator`].
#[allow(unsafe_code)]
pub(crate) fn tune_allocator() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets the allocator's own parameters; these values are in their ranges.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 4 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 32 << 20);
    }
}
