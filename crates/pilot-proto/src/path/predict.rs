//! Ports a peer's NAT is expected to open next, as the peer tells them (spec 04 section 21, item 4).

use super::nat::{NatClass, PortRange, Ports};

/// Ports of one guess: what may be opened between the beacon's look and the peer's probes.
pub const MAX_RANGE: u8 = 64;

/// What a peer says of its NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PeerNat {
    /// Nothing.
    #[default]
    Unknown,
    /// There is none.
    None,
    /// One port for all destinations.
    Steady,
    /// Another for each destination, in order.
    Predictable,
    /// Another for each destination, in no order.
    Random,
}

/// In the order of their numbers.
const NATS: [PeerNat; 5] =
    [PeerNat::Unknown, PeerNat::None, PeerNat::Steady, PeerNat::Predictable, PeerNat::Random];

impl PeerNat {
    pub(super) fn number(self) -> u8 {
        NATS.iter().position(|nat| *nat == self).unwrap_or(0) as u8
    }

    pub(super) fn from_number(number: u8) -> PeerNat {
        NATS.get(usize::from(number)).copied().unwrap_or_default()
    }

    /// Every destination sees another port.
    pub fn symmetric(self) -> bool {
        matches!(self, PeerNat::Predictable | PeerNat::Random)
    }
}

impl From<NatClass> for PeerNat {
    fn from(class: NatClass) -> PeerNat {
        match class {
            NatClass::Unknown => PeerNat::Unknown,
            NatClass::None => PeerNat::None,
            NatClass::EndpointIndependent => PeerNat::Steady,
            NatClass::PerDestination { ports: Ports::Predictable { .. } } => PeerNat::Predictable,
            NatClass::PerDestination { ports: Ports::Random } => PeerNat::Random,
        }
    }
}

/// Ports a NAT is expected to open next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The most likely one.
    pub first: u16,
    /// How many, at most [`MAX_RANGE`].
    pub count: u8,
    /// Distance of two, not zero.
    pub stride: i8,
}

impl Range {
    /// The guess of our own NAT's next ports, after it has opened `skip` more since that guess was made; with a negative
    /// number it begins among those opened before.
    pub fn of(range: PortRange, skip: i32) -> Option<Range> {
        let stride = i8::try_from(range.stride).ok().filter(|stride| *stride != 0)?;
        let first = i32::from(range.first) + i32::from(stride) * skip;
        let first = u16::try_from(first).ok().filter(|port| *port != 0)?;
        Some(Range { first, count: MAX_RANGE, stride })
    }

    /// The ports in the order of their likelihood. None wraps around.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        let port = move |n: u8| i32::from(self.first) + i32::from(self.stride) * i32::from(n);
        (0..self.count.min(MAX_RANGE))
            .map_while(move |n| u16::try_from(port(n)).ok().filter(|port| *port != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn ports_follow_the_stride_and_never_wrap_around() {
        let ports = |first, stride| Range { first, count: 64, stride }.ports().collect::<Vec<_>>();
        assert_eq!(ports(40_000, 1).len(), 64);
        assert_eq!(ports(40_000, -2)[..3], [40_000, 39_998, 39_996]);
        assert_eq!(ports(65_530, 1).last(), Some(&65_535));
        assert_eq!(ports(3, -1), [3, 2, 1]);
    }

    #[test]
    fn what_was_opened_since_is_skipped() {
        let ip = [198, 51, 100, 1].into();
        let guess = PortRange { ip, first: 40_000, stride: -2, count: 64, since: Instant::now() };
        assert_eq!(Range::of(guess, 10), Some(Range { first: 39_980, count: 64, stride: -2 }));
        assert_eq!(Range::of(guess, -3), Some(Range { first: 40_006, count: 64, stride: -2 }));
        assert_eq!(Range::of(PortRange { first: 10, ..guess }, 5), None, "no port is left");
    }
}
