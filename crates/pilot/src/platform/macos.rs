use std::os::fd::BorrowedFd;

/// Sets both socket buffers to `bytes`, or to the largest power-of-two part of it the system allows.
pub(crate) fn grow_buffers(socket: BorrowedFd<'_>, bytes: usize) {
    let socket = socket2::SockRef::from(&socket);
    let fit = |set: &dyn Fn(usize) -> std::io::Result<()>| {
        let mut size = bytes;
        while size >= 64 * 1024 && set(size).is_err() {
            size /= 2;
        }
    };
    fit(&|size| socket.set_recv_buffer_size(size));
    fit(&|size| socket.set_send_buffer_size(size));
}

/// There is no error queue here.
pub(crate) fn next_error(_socket: BorrowedFd<'_>) -> std::io::Result<Option<super::Complaint>> {
    Err(std::io::ErrorKind::WouldBlock.into())
}

/// The allocator here returns free memory by itself.
pub(crate) fn release_memory() {}

/// The allocator here needs no advice.
pub(crate) fn tune_allocator() {}
