//! The candidate exchange among our own nodes: what one says about where it can be reached (docs/extensions.md,
//! "Candidates"). It travels as the payload of a control packet, sealed like everything else.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | version: 1 |
//! | 1 | 1 | bit 0: an answer, else a call; bit 1: nothing of yours has reached the sender directly of late |
//! | 2 | 4 | the call's number; an answer repeats it |
//! | 6 | 4 | the list's generation; grows |
//! | 10 | 1 | the sender's NAT: 0 unknown, 1 none, 2 one port for all destinations, 3 predictable ports, 4 random ports |
//! | 11 | 2 | first port it is expected to open next; 0: no guess |
//! | 13 | 1 | how many ports from there |
//! | 14 | 1 | distance of two of them, signed |
//! | 15 | 1 | addresses, at most 16 |
//! | 16 | n | each: kind (1), 4 or 6, the IP address (4 or 16), port (2) |
//!
//! Numbers are big-endian; bytes behind the last address are ignored, and so are addresses of an unknown kind.

use super::candidates::{Candidate, CandidateKind, MAX_CANDIDATES};
use super::predict::{MAX_RANGE, PeerNat, Range};
use std::net::{IpAddr, SocketAddr};

/// The control port of these messages; references drop what comes to it (spec 03 section 20).
pub const PORT: u16 = 3;
const VERSION: u8 = 1;
const HEADER: usize = 16;
const ANSWER: u8 = 1;
const DEAF: u8 = 2;

/// Kinds by their number in the message, from 1.
const KINDS: [CandidateKind; 5] = [
    CandidateKind::Lan,
    CandidateKind::Public,
    CandidateKind::Reflexive,
    CandidateKind::Mapped,
    CandidateKind::Operator,
];

/// A call or an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// It answers the call of this number.
    pub answer: bool,
    /// Nothing of the receiver has reached the sender directly of late, although it was waited for.
    pub deaf: bool,
    /// The call's number.
    pub round: u32,
    /// Of the list.
    pub generation: u32,
    /// The sender's NAT.
    pub nat: PeerNat,
    /// Ports its NAT is expected to open next.
    pub range: Option<Range>,
    /// Its addresses, best first, at most [`MAX_CANDIDATES`].
    pub candidates: Vec<Candidate>,
}

impl Message {
    /// The bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let kind = if self.answer { ANSWER } else { 0 } | if self.deaf { DEAF } else { 0 };
        let mut out = vec![VERSION, kind];
        out.extend_from_slice(&self.round.to_be_bytes());
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.push(self.nat.number());
        let range = self.range.unwrap_or(Range { first: 0, count: 0, stride: 0 });
        out.extend_from_slice(&range.first.to_be_bytes());
        out.extend_from_slice(&[range.count, range.stride.to_be_bytes()[0]]);
        let told = |c: &&Candidate| KINDS.contains(&c.kind);
        let list: Vec<&Candidate> = self.candidates.iter().filter(told).take(MAX_CANDIDATES).collect();
        out.push(list.len() as u8);
        for candidate in list {
            let kind = KINDS.iter().position(|k| *k == candidate.kind).unwrap_or(0);
            out.push(kind as u8 + 1);
            match candidate.addr.ip() {
                IpAddr::V4(ip) => {
                    out.push(4);
                    out.extend_from_slice(&ip.octets());
                }
                IpAddr::V6(ip) => {
                    out.push(6);
                    out.extend_from_slice(&ip.octets());
                }
            }
            out.extend_from_slice(&candidate.addr.port().to_be_bytes());
        }
        out
    }

    /// Reads a message; `None`: it does not follow the layout.
    pub fn parse(bytes: &[u8]) -> Option<Message> {
        let (header, mut rest) = bytes.split_first_chunk::<HEADER>()?;
        let [version, kind, r0, r1, r2, r3, g0, g1, g2, g3, nat, p0, p1, count, stride, addresses] = *header;
        if version != VERSION || usize::from(addresses) > MAX_CANDIDATES {
            return None;
        }
        let stride = i8::from_be_bytes([stride]);
        let range = Range { first: u16::from_be_bytes([p0, p1]), count: count.min(MAX_RANGE), stride };
        let mut candidates = Vec::with_capacity(usize::from(addresses));
        for _ in 0..addresses {
            let ([kind, family], tail) = rest.split_first_chunk::<2>()?;
            let (ip, tail): (IpAddr, &[u8]) = match family {
                4 => tail.split_first_chunk::<4>().map(|(ip, tail)| ((*ip).into(), tail))?,
                6 => tail.split_first_chunk::<16>().map(|(ip, tail)| ((*ip).into(), tail))?,
                _ => return None,
            };
            let (port, tail) = tail.split_first_chunk::<2>()?;
            rest = tail;
            let known = usize::from(*kind).checked_sub(1).and_then(|n| KINDS.get(n));
            if let Some(kind) = known {
                candidates.push(Candidate::new(SocketAddr::new(ip, u16::from_be_bytes(*port)), *kind));
            }
        }
        Some(Message {
            answer: kind & ANSWER != 0,
            deaf: kind & DEAF != 0,
            round: u32::from_be_bytes([r0, r1, r2, r3]),
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
            nat: PeerNat::from_number(nat),
            range: (range.first != 0 && range.count != 0).then_some(range),
            candidates,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Message {
        let at = |text: &str, kind| Candidate::new(text.parse().unwrap(), kind);
        Message {
            answer: true,
            deaf: true,
            round: 7,
            generation: 0x0102_0304,
            nat: PeerNat::Predictable,
            range: Some(Range { first: 40_001, count: 64, stride: -1 }),
            candidates: vec![
                at("192.168.1.7:4000", CandidateKind::Lan),
                at("[2001:db8::7]:4000", CandidateKind::Public),
                at("198.51.100.7:40000", CandidateKind::Reflexive),
                at("198.51.100.7:4000", CandidateKind::Mapped),
                at("203.0.113.9:9", CandidateKind::Operator),
            ],
        }
    }

    #[test]
    fn a_message_comes_back_as_it_was() {
        let message = message();
        let bytes = message.to_bytes();
        assert_eq!(Message::parse(&bytes), Some(message));
        assert_eq!(&bytes[..16], [1, 3, 0, 0, 0, 7, 1, 2, 3, 4, 3, 0x9c, 0x41, 64, 255, 5]);
        assert_eq!(&bytes[16..24], [1, 4, 192, 168, 1, 7, 0x0f, 0xa0]);
    }

    #[test]
    fn short_or_foreign_messages_are_refused_and_unknown_kinds_skipped() {
        let bytes = message().to_bytes();
        for len in 0..bytes.len() {
            assert_eq!(Message::parse(&bytes[..len]), None, "{len} bytes");
        }
        let changed = |at: usize, to: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = to;
            Message::parse(&bytes)
        };
        assert_eq!(changed(0, 2), None, "version");
        assert!(changed(1, 0).is_some_and(|message| !message.answer && !message.deaf));
        assert_eq!(changed(15, 17), None, "too many");
        assert_eq!(changed(17, 5), None, "family");
        assert_eq!(changed(16, 9).unwrap().candidates.len(), 4);
        assert_eq!(changed(10, 9).unwrap().nat, PeerNat::Unknown);
        let longer: Vec<u8> = bytes.iter().copied().chain([1, 2, 3]).collect();
        assert_eq!(Message::parse(&longer), Some(message()));
    }

    #[test]
    fn learnt_and_surplus_addresses_are_not_told() {
        let mut message = message();
        message.candidates = (1..40)
            .map(|n| Candidate::new(SocketAddr::from(([10, 0, 0, 1], n)), CandidateKind::Lan))
            .collect();
        message
            .candidates
            .insert(0, Candidate::new(SocketAddr::from(([10, 0, 0, 9], 9)), CandidateKind::Learnt));
        let parsed = Message::parse(&message.to_bytes()).unwrap();
        assert_eq!(parsed.candidates, message.candidates[1..=MAX_CANDIDATES]);
    }
}
