//! Which address a pod gets: the order of the reference `host-local` plugin, so that a node can change between the two
//! with its pods running.
//!
//! Pure: which addresses are in use is a parameter. The files that remember it are `towpath-local`'s business.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use crate::model::Family;

/// The pod addresses of one podCIDR.
///
/// Not among them: the network address, which is the node's own on the overlay; the one after it, which `host-local`
/// keeps for a gateway; and the broadcast address of IPv4. So a /24 has 253.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    cidr: IpNet,
}

/// Why no address can be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IpamError {
    /// The podCIDR has no room for pods.
    #[error(
        "podCIDR {cidr} is too small to take pod addresses from: it needs a prefix of at most {longest} bits; \
         give the node a larger podCIDR"
    )]
    TooSmall {
        /// The podCIDR.
        cidr: IpNet,
        /// The longest prefix that has an address for a pod.
        longest: u8,
    },
    /// Every address is in use.
    #[error(
        "podCIDR {cidr} has no free address: {used} of {capacity} are in use; \
         delete pods of this node or move them to another"
    )]
    Exhausted {
        /// The podCIDR.
        cidr: IpNet,
        /// How many of its addresses are in use.
        used: u128,
        /// How many it has for pods.
        capacity: u128,
    },
}

impl Range {
    /// # Errors
    /// If the podCIDR has fewer than four addresses, as in `host-local`.
    pub fn new(cidr: IpNet) -> Result<Self, IpamError> {
        let longest = Family::of_net(cidr).host_prefix_len() - 2;
        if cidr.prefix_len() > longest {
            return Err(IpamError::TooSmall { cidr, longest });
        }
        Ok(Self { cidr: cidr.trunc() })
    }

    /// The podCIDR.
    #[must_use]
    pub const fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The lowest address for a pod.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.address(self.first_bits())
    }

    /// The highest address for a pod.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.address(self.last_bits())
    }

    /// How many pods it has addresses for.
    #[must_use]
    pub fn capacity(&self) -> u128 {
        // Cannot overflow: two addresses at least are taken off of at most 2^128.
        self.last_bits() - self.first_bits() + 1
    }

    /// Whether a pod can have the address.
    #[must_use]
    pub fn contains(&self, addr: IpAddr) -> bool {
        Family::of(addr) == Family::of_net(self.cidr) && (self.first_bits()..=self.last_bits()).contains(&bits(addr))
    }

    /// The next free address after the one handed out last, from the beginning again after the end. So an address
    /// rests as long as possible before another pod gets it.
    ///
    /// # Errors
    /// If every address is in use.
    pub fn next(&self, last_reserved: Option<IpAddr>, used: &BTreeSet<IpAddr>) -> Result<IpAddr, IpamError> {
        let (first, last) = (self.first_bits(), self.last_bits());
        let after = |n: u128| if n >= last { first } else { n + 1 };
        let start = last_reserved.filter(|a| self.contains(*a)).map_or(first, |a| after(bits(a)));
        let mut candidate = start;
        // Every turn meets another used address, so the loop ends after at most as many turns as there are.
        while used.contains(&self.address(candidate)) {
            candidate = after(candidate);
            if candidate == start {
                return Err(IpamError::Exhausted { cidr: self.cidr, used: self.used(used), capacity: self.capacity() });
            }
        }
        Ok(self.address(candidate))
    }

    /// How many of its addresses are among the given ones.
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
            // All numbers that come here lie between those of two addresses of the family, so nothing is cut off.
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
    fn a_range_leaves_out_what_no_pod_may_have() {
        for (cidr, first, last, capacity, why) in [
            ("10.244.1.0/24", "10.244.1.2", "10.244.1.254", 253, "not the tunnel's, the gateway's, the broadcast"),
            ("10.244.1.7/24", "10.244.1.2", "10.244.1.254", 253, "host bits do not count"),
            ("10.244.1.4/30", "10.244.1.6", "10.244.1.6", 1, "the smallest of IPv4"),
            ("fd00::/64", "fd00::2", "fd00::ffff:ffff:ffff:ffff", (1 << 64) - 2, "IPv6 has no broadcast"),
            ("fd00::4/126", "fd00::6", "fd00::7", 2, "the smallest of IPv6"),
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
            (None, &[][..], "10.244.1.2", "the first"),
            (Some("10.244.1.2"), &["10.244.1.2"], "10.244.1.3", "the one after"),
            (Some("10.244.1.2"), &[], "10.244.1.3", "also when the last one was given back: it rests"),
            (Some("10.244.1.3"), &["10.244.1.4", "10.244.1.5"], "10.244.1.6", "steps over used ones"),
            (Some("10.244.1.6"), &["10.244.1.2"], "10.244.1.3", "wraps at the end, over used ones"),
            (Some("10.9.9.9"), &[], "10.244.1.2", "a last one of another podCIDR does not count"),
            (Some("fd00::5"), &[], "10.244.1.2", "nor one of the other family"),
            (Some("10.244.1.0"), &[], "10.244.1.2", "nor one that no pod can have"),
            (None, &["10.244.1.0", "10.244.1.1", "fd00::2"], "10.244.1.2", "foreign entries are harmless"),
        ] {
            let used = used.iter().map(|a| ip(a)).collect();
            assert_eq!(range.next(last.map(ip), &used), Ok(ip(want)), "{why}");
        }
    }

    #[test]
    fn a_full_range_is_an_error_that_names_it_and_every_address_can_be_had_before() {
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
            assert_eq!(range.next(last, &used), Ok(freed), "an address given back is found");
        }
    }
}
