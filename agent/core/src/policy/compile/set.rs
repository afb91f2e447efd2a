//! The sets that chains look into, as expressions of what they hold. The expression names the set, the cluster fills
//! it: when pods come and go, elements change and neither names nor chains do.

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

/// PortMatch a set holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetExpr<'a> {
    /// Addresses of pods.
    Pods(Family, BTreeSet<&'a PodSelector>),
    /// Networks, disjoint.
    Nets(Family, Vec<IpNet>),
    /// Protocols with single ports.
    Ports(BTreeSet<(Protocol, u16)>),
    /// Protocols with ranges of ports, disjoint.
    PortRanges(Vec<PortRange>),
    /// Addresses of pods with a protocol and a port each.
    PodPorts(Family, BTreeSet<(AddressSource<'a>, PortKey<'a>)>),
    /// Networks with ranges of ports, disjoint.
    NetPorts(Family, Vec<(IpNet, PortRange)>),
}

/// Whose addresses a set of pods and ports holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum AddressSource<'a> {
    /// Every pod's.
    AnyPod,
    /// Those of the selected pods.
    Selected(&'a PodSelector),
    /// Those of pods in the block.
    Within(&'a IpBlock),
}

/// Which port of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PortKey<'a> {
    /// The same for all.
    Number(Protocol, u16),
    /// PortMatch each of them calls so.
    Named(Protocol, &'a str),
}

impl SetExpr<'_> {
    /// A readable beginning of the name, for people who read `nft list table`.
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

    /// The set's name: the same for equal expressions on every node and at any time.
    pub(super) fn name(&self) -> String {
        format!("{}.{}", self.prefix(), fingerprint(self))
    }

    /// Which pods the set holds. The elements of the other sets say all that there is to say.
    pub(super) fn comment(&self) -> Option<Comment> {
        let items: Vec<String> = match self {
            Self::Pods(_, selectors) => selectors.iter().map(ToString::to_string).collect(),
            Self::PodPorts(_, pairs) => pairs.iter().map(|(source, port)| format!("{source} port {port}")).collect(),
            Self::Nets(..) | Self::Ports(_) | Self::PortRanges(_) | Self::NetPorts(..) => return None,
        };
        Some(Comment::list("peers:", &items))
    }

    /// Whether nothing can ever be in it.
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

/// PeerMatch puts something into a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum MemberSource {
    /// Every pod.
    AnyPod,
    /// The selected pods.
    Selected(PodSelector),
    /// Pods, as far as their addresses are in the block.
    Within(IpBlock),
}

/// PortMatch a pod puts into a set for each of its addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetMember {
    /// The address.
    Address,
    /// The address with this port.
    Port(Protocol, u16),
    /// The address with what the pod calls so.
    Named(Protocol, String),
}

/// PortMatch a set holds.
pub(super) enum SetContents {
    /// Always the same.
    Fixed(OrdSet<Element>),
    /// PortMatch pods put into it, with their addresses of one family.
    FromPods(Family, BTreeMap<MemberSource, BTreeSet<SetMember>>),
}

impl SetExpr<'_> {
    pub(super) fn contents(&self) -> SetContents {
        let net_ports = |(net, range): &(IpNet, PortRange)| -> Element {
            [net_value(*net)].into_iter().chain(range_values(*range)).collect()
        };
        SetContents::Fixed(match self {
            Self::Pods(family, selectors) => {
                let given = |selector: &&PodSelector| {
                    (MemberSource::Selected((*selector).clone()), [SetMember::Address].into())
                };
                return SetContents::FromPods(*family, selectors.iter().map(given).collect());
            }
            Self::PodPorts(family, pairs) => {
                let mut given: BTreeMap<MemberSource, BTreeSet<SetMember>> = BTreeMap::new();
                for (holder, key) in pairs {
                    given.entry(holder.giver()).or_default().insert(key.gift());
                }
                return SetContents::FromPods(*family, given);
            }
            Self::Nets(_, nets) => nets.iter().map(|net| vec![net_value(*net)]).collect(),
            Self::Ports(ports) => ports.iter().map(|&(protocol, port)| port_values(protocol, port).to_vec()).collect(),
            Self::PortRanges(ranges) => ranges.iter().map(|range| range_values(*range).to_vec()).collect(),
            Self::NetPorts(_, pairs) => pairs.iter().map(net_ports).collect(),
        })
    }

    /// The set, with nothing in it.
    pub(super) fn empty(&self) -> Set {
        Set { key: self.key(), lookup: self.lookup(), elements: OrdSet::new() }
    }
}

impl AddressSource<'_> {
    fn giver(self) -> MemberSource {
        match self {
            Self::AnyPod => MemberSource::AnyPod,
            Self::Selected(selector) => MemberSource::Selected(selector.clone()),
            Self::Within(block) => MemberSource::Within(block.clone()),
        }
    }
}

impl PortKey<'_> {
    fn gift(self) -> SetMember {
        match self {
            Self::Number(protocol, port) => SetMember::Port(protocol, port),
            Self::Named(protocol, name) => SetMember::Named(protocol, name.to_owned()),
        }
    }
}

impl MemberSource {
    /// PortMatch the pod puts into a set of this family by this right, if it has it at all.
    pub(super) fn elements(&self, gifts: &BTreeSet<SetMember>, family: Family, pod: &Pod) -> Vec<Element> {
        let inside = |address: &IpAddr| match self {
            Self::Within(block) => block.contains(*address),
            Self::AnyPod | Self::Selected(_) => true,
        };
        let addresses = pod.addresses.iter().filter(|a| Family::of(**a) == family).filter(|a| inside(a));
        addresses.flat_map(|address| gifts.iter().flat_map(|gift| gift.elements(*address, pod))).collect()
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

/// Eighty bits of the SHA-1 of a text, in hexadecimal: who wants to meet the name of somebody else's object has to
/// try 2^80 texts.
pub(super) fn fingerprint(text: impl fmt::Display) -> String {
    struct Digester(Sha1);
    impl Write for Digester {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            self.0.update(s);
            Ok(())
        }
    }
    let mut digester = Digester(Sha1::new());
    // Neither the digester nor any Display of ours ever fails.
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
            Self::PodPorts(_, pairs) => pairs.iter().try_for_each(|(holder, port)| writeln!(f, "{holder} {port}")),
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
