//! The words that every room of the agent shares.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use imbl::OrdMap;
use ipnet::IpNet;

use crate::names::IfName;

/// An IP address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in the order in which everything is printed.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a network.
    #[must_use]
    pub const fn of_net(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    /// The prefix length of a single address: 32 or 128.
    #[must_use]
    pub const fn host_prefix_len(self) -> u8 {
        match self {
            Self::V4 => Ipv4Addr::BITS as u8,
            Self::V6 => Ipv6Addr::BITS as u8,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The single-address network of an address: /32 or /128.
#[must_use]
pub fn host_net(addr: IpAddr) -> IpNet {
    IpNet::from(addr)
}

/// A text that is not what its type wants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseError {
    /// What was given.
    pub text: String,
    /// What would have been right, with an article: "a MAC address of six hexadecimal pairs".
    pub expected: &'static str,
}

impl ParseError {
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.to_owned(), expected }
    }
}

/// An Ethernet address. Prints in lower case with colons, as flannel's annotation wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of every pod's host-side interface: Canal's, so that its pods can be taken over as they are.
    pub const HOST_VETH: Self = Self([0xee; 6]);

    /// Whether one station can have it: not a group address and not all zero (IEEE 802, section 8.2).
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// A locally administered unicast address made of six given bytes, random ones usually (IEEE 802, section 8.2.2).
    #[must_use]
    pub const fn locally_administered(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfc) | 0x02;
        Self(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new(text, "a MAC address of six hexadecimal pairs");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(error)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(error()),
        }
    }
}

/// A VXLAN network identifier: 24 bits, not zero (RFC 7348, section 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(u32);

impl Vni {
    /// The greatest.
    pub const MAX: u32 = 0x00ff_ffff;

    /// `None` outside of 1..=[`Vni::MAX`].
    #[must_use]
    pub const fn new(n: u32) -> Option<Self> {
        if n >= 1 && n <= Self::MAX { Some(Self(n)) } else { None }
    }

    /// The number.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a Kubernetes Node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A pod, by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Labels of a Kubernetes object.
pub type Labels = BTreeMap<String, String>;

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Its number in the IP header (IANA, Assigned Internet Protocol Numbers).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Another node, as far as one family of the overlay is concerned: what it publishes in its annotations. Its addresses are of
/// that family, as the index checks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodePeer {
    /// Its Node.
    pub node: NodeName,
    /// Its pods' network; its network address is the VTEP's own address.
    pub pod_cidr: IpNet,
    /// Where its VTEP is reached on the underlay.
    pub public_ip: IpAddr,
    /// Its VTEP's MAC.
    pub vtep_mac: Mac,
}

/// The other nodes by the family that they are peers in. No two have a part of their pods' networks or their VTEPs' MAC in
/// common, nor has one with this node: the index decides whose it is.
pub type NodePeers = BTreeMap<Family, OrdMap<NodeName, NodePeer>>;

/// A pod's interface on this node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// The pod.
    pub pod: PodId,
    /// The host's end of its veth.
    pub interface: IfName,
    /// The addresses it may send from, one per family at most.
    pub addresses: Vec<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_is_a_nonzero_24_bit_number() {
        for (n, ok, why) in [
            (0, false, "zero is reserved"),
            (1, true, "flannel's default"),
            (Vni::MAX, true, "24 bits"),
            (Vni::MAX + 1, false, "25 bits"),
        ] {
            assert_eq!(Vni::new(n).is_some(), ok, "{why}");
        }
    }

    #[test]
    fn a_mac_is_read_in_any_case_and_printed_in_lower_case() {
        let mac: Mac = "AA:bb:0C:dd:ee:01".parse().unwrap();
        assert_eq!(mac.to_string(), "aa:bb:0c:dd:ee:01");
        for bad in [
            "",
            "aa:bb:cc:dd:ee",
            "aa:bb:cc:dd:ee:ff:00",
            "aa:bb:cc:dd:ee:fg",
            "aa-bb-cc-dd-ee-ff",
            "aa:bb:cc:dd:ee:+f",
            "a:bb:cc:dd:ee:ff",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?} is no MAC address");
        }
    }

    #[test]
    fn a_made_up_mac_is_local_and_unicast_whatever_its_bytes() {
        for first in 0..=u8::MAX {
            let mac = Mac::locally_administered([first, 1, 2, 3, 4, 5]);
            assert!(mac.is_unicast() && mac.0[0] & 2 == 2, "{mac}");
        }
    }
}
