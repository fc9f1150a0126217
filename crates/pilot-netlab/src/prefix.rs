//! Address prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses, like `10.1.0.0/16` or `2001:db8::/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    base: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of that length an address lies in.
    ///
    /// # Panics
    ///
    /// If the length exceeds 32 or 128 bits.
    pub fn new(addr: IpAddr, len: u8) -> Prefix {
        assert!(len <= width(addr), "a prefix of {addr} has at most {} bits", width(addr));
        Prefix { base: from_bits(addr, bits(addr) & mask(width(addr), len)), len }
    }

    /// Length in bits.
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether it holds every address of its family.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// Whether it is one of IPv4.
    pub fn is_v4(self) -> bool {
        self.base.is_ipv4()
    }

    /// Whether the address lies in it.
    pub fn contains(self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.is_v4() && bits(addr) & mask(width(addr), self.len) == bits(self.base)
    }

    /// The n-th address in it.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn nth(self, n: u32) -> IpAddr {
        let host_bits = u32::from(width(self.base) - self.len);
        assert!(host_bits >= 32 || u64::from(n) < 1 << host_bits, "{self} holds no address number {n}");
        from_bits(self.base, bits(self.base) | u128::from(n))
    }

    /// The highest address: the broadcast address of an IPv4 network.
    pub(crate) fn last(self) -> IpAddr {
        let width = width(self.base);
        let all = mask(width, width);
        from_bits(self.base, bits(self.base) | (all & !mask(width, self.len)))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Prefix, String> {
        let bad = || format!("{text:?} is no prefix; write it like 10.1.0.0/16 or 2001:db8::/32");
        let (addr, len) = text.split_once('/').ok_or_else(bad)?;
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let len = len.parse().ok().filter(|l| *l <= width(addr)).ok_or_else(bad)?;
        Ok(Prefix::new(addr, len))
    }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

fn from_bits(family: IpAddr, bits: u128) -> IpAddr {
    match family {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
    }
}

/// The `len` highest of `width` bits.
fn mask(width: u8, len: u8) -> u128 {
    let ones = |n: u8| if n >= 128 { u128::MAX } else { (1 << n) - 1 };
    ones(width) & !ones(width - len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_knows_its_addresses() {
        let p: Prefix = "10.1.2.3/16".parse().unwrap();
        assert_eq!(p.to_string(), "10.1.0.0/16");
        assert!(p.contains("10.1.255.255".parse().unwrap()));
        assert!(!p.contains("10.2.0.0".parse().unwrap()));
        assert!(!p.contains("::1".parse().unwrap()));
        assert_eq!(p.nth(258).to_string(), "10.1.1.2");
        assert_eq!(p.last().to_string(), "10.1.255.255");
        let p: Prefix = "2001:db8:5::/48".parse().unwrap();
        assert_eq!(p.nth(2).to_string(), "2001:db8:5::2");
        assert!(Prefix::new("::".parse().unwrap(), 0).contains("1::".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<Prefix>().unwrap_err().contains("write it like"));
    }
}
