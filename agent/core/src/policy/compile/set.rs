//! Set expressions: definitions of the sets that chains refer to.
//!
//! A set is named by a hash of its expression, not of its elements. When pods start and stop, elements change while set
//! names and chains stay the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    net::IpAddr,
};

use imbl::OrdSet;
use ipnet::IpNet;
use sha1::{Digest, Sha1};

use super::interval::{PortRange, single_address};
use crate::{
    model::{Family, Protocol},
    names::Comment,
    policy::ir::{IpBlock, Pod, PodSelector},
    ruleset::{Element, KeyType, Lookup, Set, Value},
};

/// The definition of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetExpr<'a> {
    /// `address`: the addresses of the selected pods.
    Pods(Family, BTreeSet<&'a PodSelector>),
    /// `network`, disjoint.
    Nets(Family, Vec<IpNet>),
    /// `protocol . port`.
    Ports(BTreeSet<(Protocol, u16)>),
    /// `protocol . port range`, disjoint.
    PortRanges(Vec<PortRange>),
    /// `address . protocol . port`: addresses of pods, each with a port.
    PodPorts(Family, BTreeSet<(AddressSource<'a>, PortKey<'a>)>),
    /// `network . protocol . port range`, disjoint.
    NetPorts(Family, Vec<(IpNet, PortRange)>),
}

/// The pods whose addresses [`SetExpr::PodPorts`] contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AddressSource<'a> {
    /// All pods.
    AnyPod,
    /// The selected pods.
    Selected(&'a PodSelector),
    /// Pods with an address in the block.
    Within(&'a IpBlock),
}

/// The port of an element of [`SetExpr::PodPorts`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PortKey<'a> {
    /// The same port for all pods.
    Number(Protocol, u16),
    /// The port with this name, resolved for each pod.
    Named(Protocol, &'a str),
}

impl SetExpr<'_> {
    /// The readable first part of the set name, for users of `nft list table`.
    const fn prefix(&self) -> &'static str {
        match self {
            Self::Pods(Family::V4, _) => "pods4",
            Self::Pods(Family::V6, _) => "pods6",
            Self::Nets(Family::V4, _) => "nets4",
            Self::Nets(Family::V6, _) => "nets6",
            Self::Ports(_) => "ports",
            Self::PortRanges(_) => "ranges",
            Self::PodPorts(Family::V4, _) => "podports4",
            Self::PodPorts(Family::V6, _) => "podports6",
            Self::NetPorts(Family::V4, _) => "netports4",
            Self::NetPorts(Family::V6, _) => "netports6",
        }
    }

    /// The set name. Equal expressions have the same name on every node and in every run of the agent.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.prefix(), fingerprint(self))
    }

    /// The comment of the set: which pods it contains. Sets without pods need none, their elements are self-explanatory.
    pub(super) fn comment(&self) -> Option<Comment> {
        match self {
            Self::Pods(_, selectors) => Some(Comment::list("peers:", selectors.len(), selectors)),
            Self::PodPorts(_, pairs) => {
                let items = pairs.iter().map(|(source, port)| format!("{source} port {port}"));
                Some(Comment::list("peers:", pairs.len(), items))
            }
            Self::Nets(..) | Self::Ports(_) | Self::PortRanges(_) | Self::NetPorts(..) => None,
        }
    }

    /// Whether the set can never contain an element.
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Pods(_, selectors) => selectors.is_empty(),
            Self::Nets(_, nets) => nets.is_empty(),
            Self::Ports(ports) => ports.is_empty(),
            Self::PortRanges(ranges) => ranges.is_empty(),
            Self::PodPorts(_, pairs) => pairs.is_empty(),
            Self::NetPorts(_, pairs) => pairs.is_empty(),
        }
    }

    fn key(&self) -> Vec<KeyType> {
        let address = |family: &Family| match family {
            Family::V4 => KeyType::Ipv4,
            Family::V6 => KeyType::Ipv6,
        };
        match self {
            Self::Pods(family, _) | Self::Nets(family, _) => vec![address(family)],
            Self::Ports(_) | Self::PortRanges(_) => vec![KeyType::Proto, KeyType::Port],
            Self::PodPorts(family, _) | Self::NetPorts(family, _) => {
                vec![address(family), KeyType::Proto, KeyType::Port]
            }
        }
    }

    const fn lookup(&self) -> Lookup {
        match self {
            Self::Pods(..) | Self::Ports(_) | Self::PodPorts(..) => Lookup::Hash,
            Self::Nets(..) | Self::PortRanges(_) | Self::NetPorts(..) => Lookup::Interval,
        }
    }
}

/// The pods that contribute elements to a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MemberSource {
    /// All pods.
    AnyPod,
    /// The selected pods.
    Selected(PodSelector),
    /// Pods with an address in the block, with those addresses only.
    Within(IpBlock),
}

/// The element that a pod contributes for each of its addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetMember {
    /// `address`
    Address,
    /// `address . protocol . port`
    Port(Protocol, u16),
    /// `address . protocol . port` for each port of the pod with this name.
    Named(Protocol, String),
}

/// Where the elements of a set come from.
pub(super) enum SetContents {
    /// The expression: the elements never change.
    Fixed(OrdSet<Element>),
    /// The pods of the cluster, with their addresses of one family.
    FromPods(Family, BTreeMap<MemberSource, BTreeSet<SetMember>>),
}

impl SetExpr<'_> {
    pub(super) fn contents(&self) -> SetContents {
        let net_ports = |(net, range): &(IpNet, PortRange)| -> Element {
            [net_value(*net)].into_iter().chain(range_values(*range)).collect()
        };
        SetContents::Fixed(match self {
            Self::Pods(family, selectors) => {
                let members = |selector: &&PodSelector| {
                    (MemberSource::Selected((*selector).clone()), [SetMember::Address].into())
                };
                return SetContents::FromPods(*family, selectors.iter().map(members).collect());
            }
            Self::PodPorts(family, pairs) => {
                let mut members: BTreeMap<MemberSource, BTreeSet<SetMember>> = BTreeMap::new();
                for (source, key) in pairs {
                    members.entry(source.member_source()).or_default().insert(key.member());
                }
                return SetContents::FromPods(*family, members);
            }
            Self::Nets(_, nets) => nets.iter().map(|net| vec![net_value(*net)]).collect(),
            Self::Ports(ports) => ports.iter().map(|&(protocol, port)| port_values(protocol, port).to_vec()).collect(),
            Self::PortRanges(ranges) => ranges.iter().map(|range| range_values(*range).to_vec()).collect(),
            Self::NetPorts(_, pairs) => pairs.iter().map(net_ports).collect(),
        })
    }

    /// The set without elements.
    pub(super) fn empty(&self) -> Set {
        Set { key: self.key(), lookup: self.lookup(), elements: OrdSet::new() }
    }
}

impl AddressSource<'_> {
    fn member_source(self) -> MemberSource {
        match self {
            Self::AnyPod => MemberSource::AnyPod,
            Self::Selected(selector) => MemberSource::Selected(selector.clone()),
            Self::Within(block) => MemberSource::Within(block.clone()),
        }
    }
}

impl PortKey<'_> {
    fn member(self) -> SetMember {
        match self {
            Self::Number(protocol, port) => SetMember::Port(protocol, port),
            Self::Named(protocol, name) => SetMember::Named(protocol, name.to_owned()),
        }
    }
}

impl MemberSource {
    /// The elements that the pod contributes to a set of this family. The caller checks that the selector matches it.
    pub(super) fn elements(&self, members: &BTreeSet<SetMember>, family: Family, pod: &Pod) -> Vec<Element> {
        let inside = |address: &IpAddr| match self {
            Self::Within(block) => block.contains(*address),
            Self::AnyPod | Self::Selected(_) => true,
        };
        let addresses = pod.addresses.iter().filter(|a| Family::of(**a) == family).filter(|a| inside(a));
        addresses.flat_map(|address| members.iter().flat_map(|member| member.elements(*address, pod))).collect()
    }
}

impl SetMember {
    fn elements(&self, address: IpAddr, pod: &Pod) -> Vec<Element> {
        let with = |protocol, port| [Value::Addr(address)].into_iter().chain(port_values(protocol, port)).collect();
        match self {
            Self::Address => vec![vec![Value::Addr(address)]],
            Self::Port(protocol, port) => vec![with(*protocol, *port)],
            Self::Named(protocol, name) => {
                let named = pod.named_ports.iter().filter(|p| p.protocol == *protocol && p.name == *name);
                named.map(|p| with(p.protocol, p.port)).collect()
            }
        }
    }
}

fn net_value(net: IpNet) -> Value {
    single_address(net).map_or(Value::Net(net), Value::Addr)
}

const fn port_values(protocol: Protocol, port: u16) -> [Value; 2] {
    [Value::Proto(protocol.number()), Value::Port(port)]
}

const fn range_values(range: PortRange) -> [Value; 2] {
    let ports =
        if range.first == range.last { Value::Port(range.first) } else { Value::PortRange(range.first, range.last) };
    [Value::Proto(range.protocol.number()), ports]
}

/// The first 80 bits of the SHA-1 of a text, in hexadecimal. Producing the name of a members object takes about 2^80
/// attempts.
pub(super) fn fingerprint(text: impl fmt::Display) -> String {
    struct Digester(Sha1);
    impl Write for Digester {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            self.0.update(s);
            Ok(())
        }
    }
    let mut digester = Digester(Sha1::new());
    // Neither `Digester` nor the `Display` implementations used here fail.
    let _ = write!(digester, "{text}");
    digester.0.finalize().iter().take(10).fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

impl fmt::Display for SetExpr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prefix())?;
        match self {
            Self::Pods(_, selectors) => selectors.iter().try_for_each(|s| writeln!(f, "{s}")),
            Self::Nets(_, nets) => nets.iter().try_for_each(|net| writeln!(f, "{net}")),
            Self::Ports(ports) => ports.iter().try_for_each(|(p, port)| writeln!(f, "{}/{port}", p.number())),
            Self::PortRanges(ranges) => ranges.iter().try_for_each(|range| writeln!(f, "{range}")),
            Self::PodPorts(_, pairs) => pairs.iter().try_for_each(|(source, port)| writeln!(f, "{source} {port}")),
            Self::NetPorts(_, pairs) => pairs.iter().try_for_each(|(net, range)| writeln!(f, "{net} {range}")),
        }
    }
}

impl fmt::Display for AddressSource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AnyPod => f.write_str("any pod"),
            Self::Selected(selector) => selector.fmt(f),
            Self::Within(block) => write!(f, "pods within {block}"),
        }
    }
}

impl fmt::Display for PortKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(protocol, port) => write!(f, "{}/{port}", protocol.number()),
            Self::Named(protocol, name) => write!(f, "{}/{name:?}", protocol.number()),
        }
    }
}
