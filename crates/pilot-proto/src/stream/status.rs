//! Status of connections, as users see it (spec 07 section 10.1).

use super::ConnStatus;
use super::conn::{Conn, State};
use std::time::Duration;

fn whole_ms(d: Duration) -> f64 {
    d.as_millis() as f64
}

impl Conn {
    pub(super) fn status(&self) -> ConnStatus {
        let stats = &self.send.stats;
        ConnStatus {
            bytes_recv: self.recv.bytes,
            bytes_sent: stats.bytes,
            cong_win: self.send.cwnd(),
            dup_acks: stats.dup_acks,
            fast_retx: stats.fast_retransmits,
            half_close: self.own.is_some_and(|own| own.half_close),
            id: self.id.0,
            in_flight: self.send.in_flight(),
            in_recovery: self.send.in_recovery(),
            local_port: self.local_port,
            ooo_buf: self.recv.pieces() as u64,
            peer_recv_win: if self.state == State::SynSent { -1 } else { self.send.peer_window_bytes() },
            recv_win: self.recv.free(),
            remote_addr: self.remote.to_string(),
            remote_port: self.remote_port,
            retransmits: stats.retransmits,
            rttvar_ms: whole_ms(self.send.rtt.rttvar()),
            sack_recv: stats.sack_blocks,
            sack_sent: self.sack_lists_sent,
            segs_recv: self.recv.segments,
            segs_sent: stats.segments,
            srtt_ms: self.send.rtt.srtt().map_or(0.0, whole_ms),
            ssthresh: self.send.ssthresh(),
            state: self.state_name(),
            unacked: self.send.unacked_segments() as u64,
        }
    }
}
