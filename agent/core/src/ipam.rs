//! Pod address allocation, in the order of the reference plugin `host-local`: a node can switch between the two plugins
//! while its pods run.
//!
//! Pure: the addresses in use are a parameter. `towpath-local` stores them in files.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::model::Family;

/// The addresses of a podCIDR that pods can have.
///
/// Excluded are the network address (the node's VTEP), the address after it (`host-local` reserves it for a gateway),
/// and the IPv4 broadcast address. A /24 has 253 addresses for pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    cidr: IpNet,
}

/// Why no address can be allocated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The podCIDR has fewer than four addresses.
    #[error(
        "podCIDR {cidr} is too small for pod addresses: its prefix length must be at most /{longest}; \
         give the node a larger podCIDR"
    )]
    TooSmall {
        /// The podCIDR.
        cidr: IpNet,
        /// The greatest allowed prefix length: 30 for IPv4, 126 for IPv6.
        longest: u8,
    },
    /// Every address is in use.
    #[error(
        "podCIDR {cidr} has no free address: {used} of {capacity} are in use; \
         delete pods of this node or move them to another node"
    )]
    Exhausted {
        /// The podCIDR.
        cidr: IpNet,
        /// Number of pod addresses in use.
        used: u128,
        /// Number of pod addresses in the podCIDR.
        capacity: u128,
    },
}

impl Range {
    /// The pod addresses of a podCIDR. Host bits are ignored.
    ///
    /// # Errors
    /// [`IpamError::TooSmall`] if the podCIDR has fewer than four addresses, the same limit as in `host-local`.
    pub fn new(cidr: IpNet) -> Result<Self, IpamError> {
        let longest = Family::of_net(cidr).host_prefix_len() - 2;
        if cidr.prefix_len() > longest {
            return Err(IpamError::TooSmall { cidr, longest });
        }
        Ok(Self { cidr: cidr.trunc() })
    }

    /// The podCIDR, without host bits.
    #[must_use]
    pub const fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The lowest pod address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.address(self.first_bits())
    }

    /// The highest pod address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.address(self.last_bits())
    }

    /// Number of pod addresses.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        // Cannot overflow: of at most 2^128 addresses, at least two are excluded.
        self.last_bits() - self.first_bits() + 1
    }

    /// Whether the address is a pod address of this podCIDR.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == Family::of_net(self.cidr) && (self.first_bits()..=self.last_bits()).contains(&bits(addr))
    }

    /// Allocates round-robin: the next free address after the one reserved last, continuing at the first address after
    /// the end. This maximises the time before an address is reused.
    ///
    /// # Errors
    /// [`IpamError::Exhausted`] if every address is in use.
    pub fn next(&self, last_reserved: Option<IpAddr>, used: &BTreeSet<IpAddr>) -> Result<IpAddr, IpamError> {
        let (first, last) = (self.first_bits(), self.last_bits());
        let after = |n: u128| if n >= last { first } else { n + 1 };
        let start = last_reserved.filter(|a| self.contains(*a)).map_or(first, |a| after(bits(a)));
        let mut candidate = start;
        // Each iteration skips another address in use, so there are at most `used.len()` iterations.
        while used.contains(&self.address(candidate)) {
            candidate = after(candidate);
            if candidate == start {
                return Err(IpamError::Exhausted { cidr: self.cidr, used: self.used(used), capacity: self.capacity() });
            }
        }
        Ok(self.address(candidate))
    }

    /// Number of pod addresses of this podCIDR among `used`.
    #[must_use]
    pub fn used(&self, used: &BTreeSet<IpAddr>) -> u128 {
        used.range(self.first()..=self.last()).map(|_| 1).sum()
    }

    fn first_bits(&self) -> u128 {
        bits(self.cidr.network()) + 2
    }

    fn last_bits(&self) -> u128 {
        match self.cidr {
            IpNet::V4(net) => u128::from(net.broadcast().to_bits()) - 1,
            // IPv6 has no broadcast: RFC 4291, section 2.
            IpNet::V6(net) => net.broadcast().to_bits(),
        }
    }

    fn address(&self, bits: u128) -> IpAddr {
        match self.cidr {
            // Callers pass values between two addresses of the family, so nothing is truncated.
            #[allow(clippy::cast_possible_truncation)]
            IpNet::V4(_) => Ipv4Addr::from_bits(bits as u32).into(),
            IpNet::V6(_) => Ipv6Addr::from_bits(bits).into(),
        }
    }
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => a.to_bits().into(),
        IpAddr::V6(a) => a.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(cidr: &str) -> Range {
        Range::new(cidr.parse().unwrap()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_range_excludes_reserved_addresses() {
        for (cidr, first, last, capacity, why) in [
            ("10.244.1.0/24", "10.244.1.2", "10.244.1.254", 253, "without VTEP, gateway and broadcast address"),
            ("10.244.1.7/24", "10.244.1.2", "10.244.1.254", 253, "host bits are ignored"),
            ("10.244.1.4/30", "10.244.1.6", "10.244.1.6", 1, "the smallest IPv4 podCIDR"),
            ("fd00::/64", "fd00::2", "fd00::ffff:ffff:ffff:ffff", (1 << 64) - 2, "IPv6 has no broadcast"),
            ("fd00::4/126", "fd00::6", "fd00::7", 2, "the smallest IPv6 podCIDR"),
            ("::/0", "::2", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", u128::MAX - 1, "does not overflow"),
            ("0.0.0.0/0", "0.0.0.2", "255.255.255.254", (1 << 32) - 3, "does not overflow"),
        ] {
            let range = range(cidr);
            assert_eq!(
                (range.first(), range.last(), range.capacity()),
                (ip(first), ip(last), capacity),
                "{cidr}: {why}"
            );
            assert_eq!(range.cidr().addr(), range.cidr().network(), "{cidr}: {why}");
        }
        for cidr in ["10.0.0.0/31", "10.0.0.1/32", "fd00::/127", "fd00::1/128"] {
            let error = Range::new(cidr.parse().unwrap()).unwrap_err();
            assert!(matches!(error, IpamError::TooSmall { .. }), "{cidr}: {error}");
        }
    }

    #[test]
    fn the_next_address_follows_the_last_one_and_wraps_around() {
        let range = range("10.244.1.0/29");
        for (last, used, want, why) in [
            (None, &[][..], "10.244.1.2", "the first address"),
            (Some("10.244.1.2"), &["10.244.1.2"], "10.244.1.3", "the next address"),
            (Some("10.244.1.2"), &[], "10.244.1.3", "the last one is not reused at once, even if it is free"),
            (Some("10.244.1.3"), &["10.244.1.4", "10.244.1.5"], "10.244.1.6", "skips addresses in use"),
            (Some("10.244.1.6"), &["10.244.1.2"], "10.244.1.3", "wraps around and skips addresses in use"),
            (Some("10.9.9.9"), &[], "10.244.1.2", "a last address of another podCIDR is ignored"),
            (Some("fd00::5"), &[], "10.244.1.2", "a last address of the other family is ignored"),
            (Some("10.244.1.0"), &[], "10.244.1.2", "a last address that is not a pod address is ignored"),
            (None, &["10.244.1.0", "10.244.1.1", "fd00::2"], "10.244.1.2", "other addresses in use have no effect"),
        ] {
            let used = used.iter().map(|a| ip(a)).collect();
            assert_eq!(range.next(last.map(ip), &used), Ok(ip(want)), "{why}");
        }
    }

    #[test]
    fn every_address_is_allocated_before_the_range_is_exhausted() {
        for (cidr, expected) in [("10.244.1.0/24", 253), ("fd00::/120", 254)] {
            let range = range(cidr);
            let mut used = BTreeSet::new();
            let mut last = Some(range.last());
            for _ in 0..expected {
                let addr = range.next(last, &used).unwrap();
                assert!(range.contains(addr) && used.insert(addr), "{addr} is new");
                last = Some(addr);
            }
            let error = range.next(last, &used).unwrap_err();
            assert_eq!(error, IpamError::Exhausted { cidr: range.cidr(), used: expected, capacity: expected });
            assert!(error.to_string().contains(cidr), "{error}");
            let freed = *used.iter().nth(100).unwrap();
            used.remove(&freed);
            assert_eq!(range.next(last, &used), Ok(freed), "a released address is allocated again");
        }
    }
}
