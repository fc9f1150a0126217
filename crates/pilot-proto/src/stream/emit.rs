//! What a connection sends next.

use super::PathInfo;
use super::close::FIN_BOTH;
use super::conn::{Conn, State};
use super::handshake::{our_options, syn_window};
use super::sack::{self, Block};
use super::sender::{Piece, REFERENCE_SEGMENT};
use crate::wire::packet::{Header, MAX_PAYLOAD, flags};
use std::time::Instant;

/// Appends a packet whose payload `write` makes. Payloads here never exceed the length field: segments are at most
/// 60,000 bytes.
fn put(header: Header, len: usize, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> bool {
    debug_assert!(len <= MAX_PAYLOAD);
    header.emit_with(len, out, write).is_ok()
}

/// What kind of packet was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emitted {
    /// The peer answers it.
    Asks,
    /// It is an answer itself.
    Answers,
}

impl Conn {
    /// Appends the next packet, if there is one to send now.
    pub(super) fn emit(&mut self, now: Instant, path: PathInfo, out: &mut Vec<u8>) -> Option<Emitted> {
        let sent = match self.state {
            State::SynSent => self.emit_syn(now, out).then_some(Emitted::Asks),
            State::Open => self.emit_open(now, path, out),
            State::TimeWait => self.emit_last(now, out).then_some(Emitted::Answers),
            State::Closed => None,
        };
        if sent.is_some() {
            self.last_sent = now;
        }
        sent
    }

    fn emit_syn(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if !self.dial.due {
            return false;
        }
        self.dial.on_sent(now);
        let window = syn_window(self.advertise());
        let header = self.header(flags::SYN, self.iss, 0, window);
        put(header, self.dial.options.len(), out, |out| out.extend_from_slice(&self.dial.options))
    }

    fn emit_open(&mut self, now: Instant, path: PathInfo, out: &mut Vec<u8>) -> Option<Emitted> {
        let answers = |sent: bool| sent.then_some(Emitted::Answers);
        let asks = |sent: bool| sent.then_some(Emitted::Asks);
        if let Some(first) = self.syn_ack_due.take() {
            return answers(self.emit_syn_ack(first, out));
        }
        let mut room = path.max_payload.min(MAX_PAYLOAD);
        if self.send.timed_out() {
            // Whatever else is wrong, the size must not be it.
            room = room.min(REFERENCE_SEGMENT);
        }
        let mss = match self.own {
            Some(own) => room.min(own.max_segment).saturating_sub(1),
            None => room.min(REFERENCE_SEGMENT),
        };
        self.send.set_mss(mss.max(1));
        let holes = self.recv.has_holes();
        let ack_first = match self.own {
            Some(_) => self.acks.is_due() && holes,
            None => !self.acks.data_covers_owed(),
        };
        if ack_first && self.emit_ack(out) {
            return Some(Emitted::Answers);
        }
        if self.probe_due {
            return asks(self.emit_probe(out));
        }
        if let Some(piece) = self.send.next_piece(now) {
            if piece.fresh {
                self.last_activity = now;
            }
            self.arm_fin(now);
            self.acks.on_sent(holes);
            return asks(self.emit_data(piece, out));
        }
        if self.emit_ack(out) {
            return Some(Emitted::Answers);
        }
        self.arm_fin(now);
        asks(self.closing.fin_due && self.emit_fin(now, out))
    }

    fn emit_syn_ack(&mut self, first: bool, out: &mut Vec<u8>) -> bool {
        let window = syn_window(self.advertise());
        let header = self.header(flags::SYN | flags::ACK, self.iss, self.ack_number(), window);
        // The options are part of the numbering only if the SYN that is answered carried them.
        let options = if first && self.own.is_some() { our_options().encode() } else { Vec::new() };
        put(header, options.len(), out, |out| out.extend_from_slice(&options))
    }

    fn emit_data(&mut self, piece: Piece, out: &mut Vec<u8>) -> bool {
        let window = self.advertise();
        let header = self.header(flags::ACK, self.send.seq(piece.off), self.ack_number(), window);
        let own = self.own.is_some();
        let buf = &self.send.buf;
        put(header, piece.len + usize::from(own), out, |out| {
            if own {
                out.push(0);
            }
            buf.copy_to(piece.off, piece.len, out);
        })
    }

    /// The next acknowledgement that is due.
    fn emit_ack(&mut self, out: &mut Vec<u8>) -> bool {
        let (ack, blocks): (u32, Vec<Block>) = if self.own.is_some() {
            if !self.acks.is_due() {
                return false;
            }
            self.acks.sent_due();
            (self.ack_number(), self.recv.sack_blocks(sack::MAX_OWN_BLOCKS))
        } else {
            match self.acks.take_owed() {
                Some(owed) => (owed.ack, owed.blocks),
                None => return false,
            }
        };
        let window = self.advertise();
        let header = self.header(flags::ACK, self.send.nxt_seq(), ack, window);
        if blocks.is_empty() {
            return put(header, 0, out, |_| {});
        }
        self.sack_lists_sent += 1;
        if self.own.is_some() {
            put(header, sack::own_len(blocks.len()), out, |out| sack::write_own(&blocks, out))
        } else {
            put(header, sack::reference_len(blocks.len()), out, |out| sack::write_reference(&blocks, out))
        }
    }

    /// One byte the peer has already acknowledged: every version answers it (spec 03 section 12.1).
    fn emit_probe(&mut self, out: &mut Vec<u8>) -> bool {
        self.probe_due = false;
        self.probes += 1;
        let (seq, byte) = self.send.old_byte();
        let window = self.advertise();
        let header = self.header(flags::ACK, seq, self.ack_number(), window);
        if self.own.is_some() {
            put(header, 2, out, |out| out.extend_from_slice(&[0, byte]))
        } else {
            put(header, 1, out, |out| out.push(byte))
        }
    }

    fn emit_fin(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        let seq = self.send.fin_seq();
        let kind = self.fin_kind();
        self.on_fin_sent(now);
        if self.own.is_none() {
            return put(self.header(flags::FIN, seq, 0, 0), 0, out, |_| {});
        }
        let window = self.advertise();
        let header = self.header(flags::FIN | flags::ACK, seq, self.ack_number(), window);
        put(header, 1, out, |out| out.push(kind))
    }

    /// In TIME_WAIT: the answer to the peer's FIN.
    fn emit_last(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if let Some(ack) = self.closing.fin_ack.take() {
            let header = self.header(flags::FIN | flags::ACK, self.send.nxt_seq(), ack, 0);
            return put(header, 0, out, |_| {});
        }
        if self.own.is_none() {
            return false;
        }
        if self.closing.fin_due {
            debug_assert_eq!(self.fin_kind(), FIN_BOTH);
            return self.emit_fin(now, out);
        }
        self.emit_ack(out)
    }
}
