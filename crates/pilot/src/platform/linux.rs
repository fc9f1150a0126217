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
