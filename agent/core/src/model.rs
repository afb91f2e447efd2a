//! Types that all agent crates share.

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
    /// Both families, in display order.
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

    /// Prefix length of a host address: 32 or 128.
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

/// The host network of an address: /32 or /128.
#[must_use]
pub fn host_net(addr: IpAddr) -> IpNet {
    IpNet::from(addr)
}

/// A string that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseError {
    /// The invalid string.
    pub text: String,
    /// Description of a valid string, with an article: "a MAC address of six hexadecimal pairs".
    pub expected: &'static str,
}

impl ParseError {
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self { text: text.to_owned(), expected }
    }
}

/// A MAC address. Prints in lower case with colons, as flannel's annotation requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Address of the host side of every pod's veth. It is Canal's, so that pods keep working after a migration.
    pub const HOST_VETH: Self = Self([0xee; 6]);

    /// Whether a single station can have the address: neither a group address nor all zero (IEEE 802, section 8.2).
    #[must_use]
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Turns six bytes, usually random, into a locally administered unicast address (IEEE 802, section 8.2.2).
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
    /// Maximum value: 24 bits.
    pub const MAX: u32 = 0x00ff_ffff;

    /// `None` unless `n` is in `1..=`[`Vni::MAX`].
    #[must_use]
    pub const fn new(n: u32) -> Option<Self> {
        if n >= 1 && n <= Self::MAX { Some(Self(n)) } else { None }
    }

    /// The identifier as a number.
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

/// Name of a Kubernetes Node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Namespace and name of a pod. Prints as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod, unique within the namespace.
    pub name: String,
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Labels of a Kubernetes object.
pub type Labels = BTreeMap<String, String>;

/// A transport protocol with ports that NetworkPolicy supports.
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
    /// All protocols, in order of declaration.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Protocol number in the IP header (IANA, Assigned Internet Protocol Numbers).
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Another node in one family of the overlay, as published in its annotations. All addresses are of that family; the index
/// checks this.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodePeer {
    /// Name of the Node.
    pub node: NodeName,
    /// podCIDR of the node. Its network address is the address of the VTEP.
    pub pod_cidr: IpNet,
    /// Underlay address of the VTEP.
    pub public_ip: IpAddr,
    /// MAC of the VTEP.
    pub vtep_mac: Mac,
}

/// Peers by family. No two peers overlap in podCIDR or share a VTEP MAC, and none conflicts with this node: the index
/// resolves conflicts.
pub type NodePeers = BTreeMap<Family, OrdMap<NodeName, NodePeer>>;

/// A pod of this node with its interface and addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Endpoint {
    /// Namespace and name of the pod.
    pub pod: PodId,
    /// Host side of the pod's veth.
    pub interface: IfName,
    /// Addresses of the pod, at most one per family. The pod may send from no others.
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
    fn a_mac_parses_in_any_case_and_prints_in_lower_case() {
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
            assert!(bad.parse::<Mac>().is_err(), "{bad:?} is not a MAC address");
        }
    }

    #[test]
    fn a_locally_administered_mac_is_local_and_unicast_for_any_bytes() {
        for first in 0..=u8::MAX {
            let mac = Mac::locally_administered([first, 1, 2, 3, 4, 5]);
            assert!(mac.is_unicast() && mac.0[0] & 2 == 2, "{mac}");
        }
    }
}
