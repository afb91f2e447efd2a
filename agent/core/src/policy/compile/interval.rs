//! Merges address and port ranges into disjoint intervals. The kernel rejects overlapping elements of an interval set,
//! and policies can overlap freely.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};

use crate::{
    model::{Family, Protocol},
    policy::ir::IpBlock,
};

/// An inclusive range of ports of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PortRange {
    pub(super) protocol: Protocol,
    pub(super) first: u16,
    pub(super) last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}-{}", self.protocol.number(), self.first, self.last)
    }
}

/// Merges ranges that overlap or are adjacent. The result is minimal and sorted.
pub(super) fn merge_ports(ranges: impl IntoIterator<Item = PortRange>) -> Vec<PortRange> {
    let mut sorted: Vec<PortRange> = ranges.into_iter().collect();
    sorted.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if last.protocol == range.protocol && range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The addresses of one family in the blocks, as a minimal, sorted list of networks.
pub(super) fn merge_nets<'a>(blocks: impl IntoIterator<Item = &'a IpBlock>, family: Family) -> Vec<IpNet> {
    let mut spans: Vec<AddressSpan> = blocks.into_iter().flat_map(|block| spans(block, family)).collect();
    spans.sort_unstable();
    let mut merged: Vec<AddressSpan> = Vec::new();
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.first <= last.last.saturating_add(1) => last.last = last.last.max(span.last),
            _ => merged.push(span),
        }
    }
    merged.into_iter().flat_map(|span| nets(span, family)).collect()
}

/// Splits pairs of a block and a port range into disjoint pairs of a network and a port range, sorted.
///
/// Sweep line over the addresses: between two block boundaries the set of open ports is constant. The cost grows with
/// the number of blocks times the number of blocks that overlap at one address.
pub(super) fn rectangles<'a>(
    pairs: impl IntoIterator<Item = (&'a IpBlock, PortRange)>,
    family: Family,
) -> Vec<(IpNet, PortRange)> {
    let mut changes: BTreeMap<u128, Vec<(PortRange, Edge)>> = BTreeMap::new();
    for (block, ports) in pairs {
        for span in spans(block, family) {
            changes.entry(span.first).or_default().push((ports, Edge::Opens));
            if span.last < last_address(family) {
                changes.entry(span.last + 1).or_default().push((ports, Edge::Closes));
            }
        }
    }
    let mut open: BTreeMap<PortRange, usize> = BTreeMap::new();
    let mut steps: Vec<(u128, Vec<PortRange>)> = Vec::new();
    for (at, changes) in changes {
        changes.into_iter().for_each(|(ports, change)| count(&mut open, ports, change));
        let ports = merge_ports(open.keys().copied());
        if steps.last().is_none_or(|(_, before)| *before != ports) {
            steps.push((at, ports));
        }
    }
    let ends = steps.iter().skip(1).map(|(next, _)| next - 1).chain([last_address(family)]);
    let mut rectangles = Vec::new();
    for ((first, ports), last) in steps.iter().zip(ends) {
        if !ports.is_empty() {
            let nets = nets(AddressSpan { first: *first, last }, family);
            rectangles.extend(nets.into_iter().flat_map(|net| ports.iter().map(move |p| (net, *p))));
        }
    }
    rectangles
}

#[derive(Clone, Copy)]
enum Edge {
    Opens,
    Closes,
}

fn count(open: &mut BTreeMap<PortRange, usize>, ports: PortRange, change: Edge) {
    let users = open.entry(ports).or_default();
    match change {
        Edge::Opens => *users += 1,
        Edge::Closes => *users -= 1,
    }
    if *users == 0 {
        open.remove(&ports);
    }
}

/// An inclusive range of addresses, as integers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct AddressSpan {
    first: u128,
    last: u128,
}

impl AddressSpan {
    fn of(net: &IpNet) -> Self {
        match net {
            IpNet::V4(net) => Self { first: net.network().to_bits().into(), last: net.broadcast().to_bits().into() },
            IpNet::V6(net) => Self { first: net.network().to_bits(), last: net.broadcast().to_bits() },
        }
    }
}

const fn last_address(family: Family) -> u128 {
    match family {
        Family::V4 => u32::MAX as u128,
        Family::V6 => u128::MAX,
    }
}

/// The address ranges of a block without its exceptions, sorted. Empty if the block is of the other family.
fn spans(block: &IpBlock, family: Family) -> Vec<AddressSpan> {
    if Family::of_net(block.net) != family {
        return Vec::new();
    }
    let whole = AddressSpan::of(&block.net);
    let mut holes: Vec<AddressSpan> =
        block.except.iter().filter(|e| Family::of_net(**e) == family).map(AddressSpan::of).collect();
    holes.sort_unstable();
    let mut spans = Vec::new();
    let mut first = whole.first;
    for hole in holes {
        if hole.first > whole.last {
            break;
        }
        if hole.first > first {
            spans.push(AddressSpan { first, last: hole.first - 1 });
        }
        if hole.last >= whole.last {
            return spans;
        }
        first = first.max(hole.last + 1);
    }
    spans.push(AddressSpan { first, last: whole.last });
    spans
}

/// The minimal list of networks that covers the span exactly.
fn nets(span: AddressSpan, family: Family) -> Vec<IpNet> {
    match family {
        Family::V4 => {
            // IPv4 spans use the lower 32 bits only.
            let address = |n: u128| Ipv4Addr::from_bits(n as u32);
            Ipv4Subnets::new(address(span.first), address(span.last), 0).map(IpNet::V4).collect()
        }
        Family::V6 => Ipv6Subnets::new(Ipv6Addr::from_bits(span.first), Ipv6Addr::from_bits(span.last), 0)
            .map(IpNet::V6)
            .collect(),
    }
}

/// The address of a /32 or /128; `None` for shorter prefixes.
pub(super) fn single_address(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(net: &str, except: &[&str]) -> IpBlock {
        IpBlock { net: net.parse().unwrap(), except: except.iter().map(|e| e.parse().unwrap()).collect() }
    }

    fn tcp(first: u16, last: u16) -> PortRange {
        PortRange { protocol: Protocol::Tcp, first, last }
    }

    #[test]
    fn networks_are_merged_into_a_minimal_disjoint_list() {
        for (blocks, want, why) in [
            (vec![block("10.0.0.0/8", &[]), block("10.1.0.0/16", &[])], "10.0.0.0/8", "one inside the other"),
            (vec![block("10.0.0.0/9", &[]), block("10.128.0.0/9", &[])], "10.0.0.0/8", "two halves"),
            (vec![block("0.0.0.0/0", &["128.0.0.0/1"])], "0.0.0.0/1", "the upper half excepted"),
            (vec![block("0.0.0.0/0", &["0.0.0.0/1"])], "128.0.0.0/1", "the lower half excepted"),
            (vec![block("10.0.0.0/30", &["10.0.0.1/32", "10.0.0.0/31"])], "10.0.0.2/31", "overlapping exceptions"),
            (vec![block("10.0.0.0/30", &["10.0.0.0/8"])], "", "all of it excepted"),
            (vec![block("10.0.0.0/30", &["11.0.0.0/8", "9.0.0.0/8"])], "10.0.0.0/30", "exceptions outside the block"),
            (
                vec![block("10.0.0.0/30", &["10.0.0.0/31"]), block("10.0.0.0/31", &[])],
                "10.0.0.0/30",
                "exception added back",
            ),
            (vec![block("fd00::/64", &[])], "", "the other family"),
        ] {
            let merged: Vec<String> = merge_nets(&blocks, Family::V4).iter().map(ToString::to_string).collect();
            assert_eq!(merged.join(" "), want, "{why}");
        }
        assert_eq!(merge_nets(&[block("::/0", &[])], Family::V6).len(), 1, "no overflow at the last address");
    }

    #[test]
    fn port_ranges_are_merged_within_their_protocol() {
        let udp = PortRange { protocol: Protocol::Udp, first: 3, last: 9 };
        assert_eq!(merge_ports([tcp(5, 9), tcp(1, 4), udp, tcp(20, 21)]), [tcp(1, 9), tcp(20, 21), udp]);
        assert_eq!(merge_ports([tcp(0, u16::MAX), tcp(7, 8)]), [tcp(0, u16::MAX)], "no overflow at the last port");
    }

    #[test]
    fn rectangles_are_disjoint_and_cover_exactly_the_input() {
        let blocks = [
            (block("10.0.0.0/24", &["10.0.0.128/25"]), tcp(80, 90)),
            (block("10.0.0.0/28", &[]), tcp(85, 100)),
            (block("10.0.0.192/26", &[]), tcp(1, 1)),
            (block("0.0.0.0/0", &[]), tcp(443, 443)),
        ];
        let got = rectangles(blocks.iter().map(|(b, p)| (b, *p)), Family::V4);
        for host in 0..=255 {
            let address = IpAddr::from([10, 0, 0, host]);
            for port in [0, 1, 79, 80, 84, 85, 90, 91, 100, 101, 443] {
                let open = |(first, last)| (first..=last).contains(&port);
                let want = blocks.iter().any(|(b, p)| b.contains(address) && open((p.first, p.last)));
                let hits = got.iter().filter(|(n, p)| n.contains(&address) && open((p.first, p.last))).count();
                assert_eq!(hits, usize::from(want), "{address} port {port}: in exactly one rectangle, or in none");
            }
        }
    }
}
