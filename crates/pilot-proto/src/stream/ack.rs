//! When to acknowledge (spec 03 section 10).

use super::recv::{Ingest, Receiver};
use super::sack::{self, Block};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Delay of the acknowledgement of a lone segment once the budget is used up.
const DELAY: Duration = Duration::from_millis(5);
/// Lone segments acknowledged at once before the delay applies.
const QUICK_BUDGET: u8 = 32;
/// Copies of the acknowledgement of a batch with gaps, at most one per segment: where segments get lost, so do
/// acknowledgements, and the sender of a lost one repairs nothing until its timer.
const MAX_COPIES: u8 = 3;
/// Acknowledgements owed to a reference peer at one time; beyond that the newest replaces the last.
const MAX_OWED: usize = 64;

/// One acknowledgement as it was due when a segment arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owed {
    pub(super) ack: u32,
    pub(super) blocks: Vec<Block>,
}

/// Acknowledgements due.
///
/// A reference sender grows its window and repairs losses per acknowledgement, so each one that is due to it is
/// kept and sent. Our own senders count bytes: they get one, made when it is sent.
#[derive(Debug)]
pub(super) struct Acks {
    quick: u8,
    /// Data segments since the last acknowledgement.
    unacked: u8,
    delay_at: Option<Instant>,
    /// Packets due to one of our own nodes.
    now: u8,
    owed: VecDeque<Owed>,
}

impl Acks {
    pub(super) fn new() -> Acks {
        Acks { quick: QUICK_BUDGET, unacked: 0, delay_at: None, now: 0, owed: VecDeque::new() }
    }

    /// A data segment arrived and was processed. `reference`: keep the acknowledgement as it is now.
    pub(super) fn on_data(&mut self, now: Instant, recv: &Receiver, outcome: Ingest, reference: bool) {
        self.unacked += 1;
        let at_once = recv.has_holes()
            || self.unacked >= 2
            || matches!(outcome, Ingest::Duplicate | Ingest::Refused)
            || {
                let quick = self.quick > 0;
                self.quick -= u8::from(quick);
                quick
            };
        if at_once {
            let before = self.now;
            self.due(recv, reference);
            if !reference && recv.has_holes() {
                self.now = (before + 1).min(MAX_COPIES);
            }
        } else {
            self.delay_at.get_or_insert(now + DELAY);
        }
    }

    /// An acknowledgement is due now.
    pub(super) fn due(&mut self, recv: &Receiver, reference: bool) {
        self.unacked = 0;
        self.delay_at = None;
        if !reference {
            self.now = self.now.max(1);
            return;
        }
        let owed = Owed { ack: recv.ack(false), blocks: recv.sack_blocks(sack::MAX_BLOCKS) };
        if self.owed.len() >= MAX_OWED {
            self.owed.pop_back();
        }
        self.owed.push_back(owed);
    }

    /// A packet with the current acknowledgement is on its way: nothing without SACK blocks is due any more.
    pub(super) fn on_sent(&mut self, holes: bool) {
        self.unacked = 0;
        self.delay_at = None;
        if !holes {
            self.now = 0;
        }
        self.owed.retain(|owed| !owed.blocks.is_empty());
    }

    /// The next acknowledgement owed to a reference peer.
    pub(super) fn take_owed(&mut self) -> Option<Owed> {
        self.owed.pop_front()
    }

    /// The next one owed says what any data packet says as well.
    pub(super) fn data_covers_owed(&self) -> bool {
        self.owed.len() <= 1 && self.owed.front().is_none_or(|owed| owed.blocks.is_empty())
    }

    /// Whether one is due to a peer of our own.
    pub(super) fn is_due(&self) -> bool {
        self.now > 0
    }

    /// The one due was sent.
    pub(super) fn sent_due(&mut self) {
        self.now = self.now.saturating_sub(1);
        self.unacked = 0;
        self.delay_at = None;
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.delay_at
    }

    /// The delay of a lone segment's acknowledgement may have passed.
    pub(super) fn on_timer(&mut self, now: Instant, recv: &Receiver, reference: bool) {
        if self.delay_at.is_some_and(|at| at <= now) {
            self.quick = QUICK_BUDGET;
            self.due(recv, reference);
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Acks::new();
    }
}
