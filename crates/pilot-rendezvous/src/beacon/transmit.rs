//! Sending many frames with one system call.

use super::queue::{BATCH_BYTES, Run, SEGMENTS};
use super::socket::mapped;
use std::io::{Error, ErrorKind};
use std::net::{SocketAddr, UdpSocket};

/// After a way was found that does not segment, so many runs are sent frame by frame before it is asked again: others
/// may, and routes change.
const REST: u32 = 1000;

/// What the socket took of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub frames: u64,
    pub bytes: u64,
    /// Frames the system refused: unreachable, or longer than the way there carries.
    pub refused: u64,
    /// The socket is full. What is left of the run is for later.
    pub full: bool,
}

impl Sent {
    /// How many frames are dealt with, from the first on.
    pub fn done(&self) -> usize {
        (self.frames + self.refused) as usize
    }
}

/// What takes frames: a socket that does not block.
pub(super) trait Wire {
    fn one(&self, to: SocketAddr, frame: &[u8]) -> std::io::Result<()>;
    /// All of them or none.
    fn many(&self, to: SocketAddr, run: Run<'_>) -> std::io::Result<()>;
}

/// Sends runs of frames.
#[derive(Debug)]
pub(super) struct Sender {
    /// The socket is one for IPv6.
    v6: bool,
    /// The system segments.
    segments: bool,
    rest: u32,
    /// Messages handed to the socket, of one frame or of many.
    pub messages: u64,
}

impl Sender {
    pub fn new(v6: bool, segments: bool) -> Sender {
        Sender { v6, segments, rest: 0, messages: 0 }
    }

    /// Sends a run: with as few system calls as possible if the system segments, else one frame at a time.
    pub fn send(&mut self, wire: &impl Wire, run: Run<'_>) -> Sent {
        let to = mapped(run.to, self.v6);
        let stride = run.stride.max(1);
        let segment = stride.saturating_sub(run.skip).max(1);
        let most = (BATCH_BYTES / segment).clamp(1, SEGMENTS);
        let mut sent = Sent::default();
        for bytes in run.bytes.chunks(stride.saturating_mul(most)) {
            let piece = Run { to, bytes, ..run };
            let frames = bytes.len().div_ceil(stride);
            if frames > 1 && self.asks() {
                self.messages += 1;
                match wire.many(to, piece) {
                    Ok(()) => {
                        sent.frames += frames as u64;
                        sent.bytes += (bytes.len() - frames * run.skip) as u64;
                        continue;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        sent.full = true;
                        return sent;
                    }
                    // An interface that does not calculate checksums, or IPsec.
                    Err(e) if e.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                        self.rest = REST;
                    }
                    // Segments longer than this way carries, or no way at all: the frames one by one tell.
                    Err(_) => {}
                }
            }
            for frame in piece.frames() {
                self.messages += 1;
                match wire.one(to, frame) {
                    Ok(()) => {
                        sent.frames += 1;
                        sent.bytes += frame.len() as u64;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {
                        sent.full = true;
                        return sent;
                    }
                    Err(_) => sent.refused += 1,
                }
            }
        }
        sent
    }

    /// Whether to try segmentation.
    fn asks(&mut self) -> bool {
        if self.rest > 0 {
            self.rest -= 1;
            return false;
        }
        self.segments
    }
}

impl Wire for UdpSocket {
    fn one(&self, to: SocketAddr, frame: &[u8]) -> std::io::Result<()> {
        self.send_to(frame, to).map(drop)
    }

    /// quinn-udp would do, but gives segmentation up for good at the first frame that is longer than its way carries,
    /// which anybody can send, and takes no frames with something between them.
    #[cfg(target_os = "linux")]
    fn many(&self, to: SocketAddr, run: Run<'_>) -> std::io::Result<()> {
        use socket2::{MsgHdr, SockAddr, SockRef};
        use std::io::IoSlice;
        /// `SOL_UDP`, `UDP_SEGMENT` of `linux/udp.h`.
        const SOL_UDP: i32 = 17;
        const UDP_SEGMENT: i32 = 103;
        const WORD: usize = size_of::<usize>();
        const HEADER: usize = WORD + 8;
        let invalid = || Error::from(ErrorKind::InvalidInput);
        let segment = run.stride.checked_sub(run.skip).and_then(|len| u16::try_from(len).ok());
        // A `cmsghdr`: length, level, type; then the value, padded to whole words.
        let mut control = [0u8; HEADER + WORD];
        control[..WORD].copy_from_slice(&(HEADER + 2).to_ne_bytes());
        control[WORD..WORD + 4].copy_from_slice(&SOL_UDP.to_ne_bytes());
        control[WORD + 4..HEADER].copy_from_slice(&UDP_SEGMENT.to_ne_bytes());
        control[HEADER..HEADER + 2].copy_from_slice(&segment.ok_or_else(invalid)?.to_ne_bytes());
        let mut slices = [IoSlice::new(&[]); SEGMENTS];
        let used = if run.skip == 0 {
            slices[0] = IoSlice::new(run.bytes);
            1
        } else {
            let mut used = 0;
            for frame in run.frames() {
                *slices.get_mut(used).ok_or_else(invalid)? = IoSlice::new(frame);
                used += 1;
            }
            used
        };
        let to = SockAddr::from(to);
        let message = MsgHdr::new().with_addr(&to).with_buffers(&slices[..used]).with_control(&control);
        SockRef::from(self).sendmsg(&message, 0).map(drop)
    }

    #[cfg(not(target_os = "linux"))]
    fn many(&self, _: SocketAddr, _: Run<'_>) -> std::io::Result<()> {
        Err(Error::from(ErrorKind::Unsupported))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::beacon::socket::bind;
    use std::cell::RefCell;
    use std::time::Duration;

    fn receiver() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let at = socket.local_addr().unwrap();
        (socket, at)
    }

    fn receive(socket: &UdpSocket) -> Vec<u8> {
        let mut buffer = vec![0; 65_536];
        let len = socket.recv(&mut buffer).expect("a datagram comes");
        buffer[..len].to_vec()
    }

    fn run(to: SocketAddr, bytes: &[u8], stride: usize, skip: usize) -> Run<'_> {
        Run { to, bytes, stride, skip }
    }

    #[test]
    fn a_run_arrives_as_its_frames_over_either_family_without_what_lies_between_them() {
        let (receiver, to) = receiver();
        for from in ["127.0.0.1:0", "[::]:0"] {
            let Ok(socket) = bind(from.parse().unwrap()) else { continue };
            for (skip, segments) in [(0, true), (4, true), (4, false)] {
                // More than the system takes at once, the last one short.
                let frames: Vec<Vec<u8>> =
                    (0..70u8).map(|n| vec![n; if n == 69 { 7 } else { 1204 }]).collect();
                let mut sender = Sender::new(from.starts_with('['), segments);
                let sent = sender.send(&socket, run(to, &frames.concat(), 1204, skip));
                let bytes = 69 * (1204 - skip) + 7 - skip;
                assert_eq!(sent, Sent { frames: 70, bytes: bytes as u64, ..Sent::default() });
                for frame in &frames {
                    assert_eq!(receive(&receiver), frame[skip..]);
                }
            }
        }
    }

    #[test]
    fn frames_the_system_refuses_are_counted_and_do_not_stop_the_next_run() {
        let socket = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (receiver, to) = receiver();
        let mut sender = Sender::new(false, true);
        // No port 0 can be sent to.
        let nowhere = run("127.0.0.1:0".parse().unwrap(), &[1; 20], 10, 0);
        assert_eq!(sender.send(&socket, nowhere), Sent { refused: 2, ..Sent::default() });
        let good = Sent { frames: 2, bytes: 20, ..Sent::default() };
        assert_eq!(sender.send(&socket, run(to, &[3; 20], 10, 0)), good);
        assert_eq!(receive(&receiver), [3; 10]);
    }

    /// A wire that does not segment, for this reason, and takes so many frames.
    struct Plain {
        reason: rustix::io::Errno,
        room: RefCell<usize>,
        asked: RefCell<usize>,
    }

    impl Wire for Plain {
        fn one(&self, _: SocketAddr, _: &[u8]) -> std::io::Result<()> {
            let mut room = self.room.borrow_mut();
            *room = room.checked_sub(1).ok_or(ErrorKind::WouldBlock)?;
            Ok(())
        }

        fn many(&self, _: SocketAddr, _: Run<'_>) -> std::io::Result<()> {
            *self.asked.borrow_mut() += 1;
            Err(self.reason.into())
        }
    }

    #[test]
    fn without_segmentation_frames_leave_one_by_one_and_a_way_that_has_none_is_asked_seldom() {
        use rustix::io::Errno;
        let to = "192.0.2.1:9".parse().unwrap();
        // Too long for the way is the frames' fault: those of the next run may be shorter.
        for (reason, asked) in [(Errno::IO, 3), (Errno::INVAL, 2 * REST as usize + 3)] {
            let wire = Plain { reason, room: RefCell::new(usize::MAX), asked: RefCell::new(0) };
            let mut sender = Sender::new(false, true);
            for _ in 0..2 * REST + 3 {
                let sent = sender.send(&wire, run(to, &[0; 25], 10, 2));
                assert_eq!(sent, Sent { frames: 3, bytes: 19, ..Sent::default() });
            }
            assert_eq!(*wire.asked.borrow(), asked, "{reason:?}");
        }
        let wire = Plain { reason: Errno::IO, room: RefCell::new(2), asked: RefCell::new(0) };
        let sent = Sender::new(false, false).send(&wire, run(to, &[0; 25], 10, 2));
        assert_eq!(sent, Sent { frames: 2, bytes: 16, refused: 0, full: true });
        assert_eq!(*wire.asked.borrow(), 0, "the system does not segment at all");
    }

    #[test]
    fn a_full_socket_takes_nothing_of_a_segmented_message() {
        let to = "192.0.2.1:9".parse().unwrap();
        let full = Plain {
            reason: rustix::io::Errno::AGAIN,
            room: RefCell::new(usize::MAX),
            asked: RefCell::new(0),
        };
        let sent = Sender::new(false, true).send(&full, run(to, &[0; 25], 10, 2));
        assert_eq!(sent, Sent { full: true, ..Sent::default() });
    }
}
