//! The sets that chains look into, as expressions of what they hold. The expression names the set, the cluster fills
//! it: when pods come and go, elements change and neither names nor chains do.

use std::{
    collections::BTreeSet,
    fmt::{self, Write},
    net::IpAddr,
};

use ipnet::IpNet;
use sha1::{Digest, Sha1};

use super::{
    interval::{PortRange, single_address},
    members::Members,
};
use crate::{
    model::{Family, Protocol},
    policy::ir::{Block, Pod, PodSelector},
    ruleset::{Element, KeyType, Lookup, Set, Value},
};

/// What a set holds.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    PodPorts(Family, BTreeSet<(Holder<'a>, PortKey<'a>)>),
    /// Networks with ranges of ports, disjoint.
    NetPorts(Family, Vec<(IpNet, PortRange)>),
}

/// Whose addresses a set of pods and ports holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder<'a> {
    /// Every pod's.
    AnyPod,
    /// Those of the selected pods.
    Selected(&'a PodSelector),
    /// Those of pods in the block.
    Within(&'a Block),
}

/// Which port of theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum PortKey<'a> {
    /// The same for all.
    Number(Protocol, u16),
    /// What each of them calls so.
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

impl<'a> SetExpr<'a> {
    /// The set as it is in this cluster now.
    pub(super) fn fill(&self, members: &mut Members<'a>) -> Set {
        let elements = match self {
            Self::Pods(family, selectors) => pod_elements(*family, selectors, members),
            Self::Nets(_, nets) => nets.iter().map(|net| vec![net_value(*net)]).collect(),
            Self::Ports(ports) => ports.iter().map(|&(protocol, port)| port_values(protocol, port).into()).collect(),
            Self::PortRanges(ranges) => ranges.iter().map(|range| range_values(*range).into()).collect(),
            Self::PodPorts(family, pairs) => pod_port_elements(*family, pairs, members),
            Self::NetPorts(_, pairs) => pairs
                .iter()
                .map(|(net, range)| [net_value(*net)].into_iter().chain(range_values(*range)).collect())
                .collect(),
        };
        Set { key: self.key(), lookup: self.lookup(), elements: elements.into_iter().collect() }
    }
}

fn pod_elements<'a>(
    family: Family,
    selectors: &BTreeSet<&'a PodSelector>,
    members: &mut Members<'a>,
) -> BTreeSet<Element> {
    let mut elements = BTreeSet::new();
    for selector in selectors {
        elements.extend(members.find(selector).flat_map(|pod| addresses(pod, family)).map(|a| vec![Value::Addr(a)]));
    }
    elements
}

fn pod_port_elements<'a>(
    family: Family,
    pairs: &BTreeSet<(Holder<'a>, PortKey<'a>)>,
    members: &mut Members<'a>,
) -> BTreeSet<Element> {
    let mut elements = BTreeSet::new();
    for (holder, key) in pairs {
        let mut add = |pod: &Pod, filter: &dyn Fn(IpAddr) -> bool| {
            for address in addresses(pod, family).filter(|a| filter(*a)) {
                let element = |(protocol, port)| [Value::Addr(address)].into_iter().chain(port_values(protocol, port));
                elements.extend(ports_of(pod, *key).map(|p| element(p).collect::<Element>()));
            }
        };
        match holder {
            Holder::AnyPod => members.all().for_each(|pod| add(pod, &|_| true)),
            Holder::Selected(selector) => members.find(selector).for_each(|pod| add(pod, &|_| true)),
            Holder::Within(block) => members.all().for_each(|pod| add(pod, &|a| block.contains(a))),
        }
    }
    elements
}

fn addresses(pod: &Pod, family: Family) -> impl Iterator<Item = IpAddr> {
    pod.addresses.iter().copied().filter(move |a| Family::of(*a) == family)
}

fn ports_of<'a>(pod: &'a Pod, key: PortKey<'a>) -> impl Iterator<Item = (Protocol, u16)> + 'a {
    let number = match key {
        PortKey::Number(protocol, port) => Some((protocol, port)),
        PortKey::Named(..) => None,
    };
    let named = pod.named_ports.iter().filter(move |p| key == PortKey::Named(p.protocol, &p.name));
    number.into_iter().chain(named.map(|p| (p.protocol, p.port)))
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

impl fmt::Display for Holder<'_> {
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
