//! The nft table as a value: sets, verdict maps and chains of typed rules. All collections are ordered, so the same input
//! renders to the same bytes.
//!
//! A [`Ruleset`] is the desired state. It renders in nft syntax, and an interpreter evaluates it for a packet; tests
//! compare the kernel, the interpreter and the policy evaluator. The types cover only the statements and expressions that
//! Towpath uses.

mod diff;
pub mod fake;
mod installed;
mod interpret;
mod port_guard;
mod reference;
mod stages;
mod text;
mod transaction;

pub use diff::{change, diff};
pub use installed::{Fingerprint, Installed, InstalledChain, Unmanaged};
pub use interpret::{DanglingReference, Outcome, Packet, Transport};
pub use port_guard::PROTOCOLS_WITH_PORTS;
pub use reference::Reference;
pub use transaction::{Step, Transaction};

use std::{collections::BTreeSet, net::IpAddr, num::NonZeroU32, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;

use crate::{
    model::Family,
    names::{ChainName, Comment, IfName, SetName},
};

/// The contents of our table. The maps are persistent: a clone shares its parts with the original, and comparing two
/// versions takes time proportional to their difference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Sets by name.
    pub sets: OrdMap<SetName, Set>,
    /// Verdict maps by name. Sets and maps share one name space in the kernel.
    pub maps: OrdMap<SetName, VerdictMap>,
    /// Chains by name.
    pub chains: OrdMap<ChainName, Arc<Chain>>,
    /// Comments of chains, sets and maps, for `nft list`.
    pub comments: Comments,
}

/// Comments of chains, sets and maps. The kernel accepts a comment only when an object is created. A changed comment alone
/// does not recreate the object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comments {
    /// Comments by chain.
    pub chains: OrdMap<ChainName, Comment>,
    /// Comments by set or verdict map, which share one name space.
    pub sets: OrdMap<SetName, Comment>,
}

/// The nft type of one field of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyType {
    /// `ipv4_addr`
    Ipv4,
    /// `ipv6_addr`
    Ipv6,
    /// `ifname`
    IfName,
    /// `inet_proto`
    Proto,
    /// `inet_service`
    Port,
}

/// How a set stores and looks up its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lookup {
    /// Hash table: single values only. Adding or deleting an element takes microseconds.
    Hash,
    /// Intervals (flag `interval`): prefixes and ranges that do not overlap. Changes are slow: tens of milliseconds in a
    /// set of 10,000 elements (kernel 6.18). Use it only for contents that change with policies, not with pods.
    Interval,
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Types of the key fields; more than one is a concatenation.
    pub key: Vec<KeyType>,
    /// How elements are looked up.
    pub lookup: Lookup,
    /// Elements, each with one value per key field.
    pub elements: OrdSet<Element>,
}

/// A named verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictMap {
    /// Types of the key fields; more than one is a concatenation.
    pub key: Vec<KeyType>,
    /// The verdict of each key.
    pub elements: OrdMap<Element, Verdict>,
}

/// A set element or the key of a map element: one value per key field.
pub type Element = Vec<Value>;

/// A value of a key field, or the right-hand side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// A single address.
    Addr(IpAddr),
    /// All addresses of a network. A /32 or /128 is always a [`Value::Addr`].
    Net(IpNet),
    /// An interface name.
    IfName(IfName),
    /// An IP protocol number.
    Proto(u8),
    /// A single port.
    Port(u16),
    /// First and last port, inclusive. The last is greater than the first.
    PortRange(u16, u16),
}

/// A packet field that rules match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `iifname`
    InInterface,
    /// `oifname`
    OutInterface,
    /// `ip saddr` or `ip6 saddr`; never matches a packet of the other family.
    Source(Family),
    /// `ip daddr` or `ip6 daddr`; never matches a packet of the other family.
    Destination(Family),
    /// `meta l4proto`
    Proto,
    /// `th dport`; never matches a packet whose [`Field::Proto`] has no ports.
    DestinationPort,
}

impl Field {
    /// The key type of sets in which this field is looked up.
    #[must_use]
    pub const fn key_type(self) -> KeyType {
        match self {
            Self::InInterface | Self::OutInterface => KeyType::IfName,
            Self::Source(Family::V4) | Self::Destination(Family::V4) => KeyType::Ipv4,
            Self::Source(Family::V6) | Self::Destination(Family::V6) => KeyType::Ipv6,
            Self::Proto => KeyType::Proto,
            Self::DestinationPort => KeyType::Port,
        }
    }
}

/// A comparison operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CmpOp {
    /// `==`
    Eq,
    /// `!=`
    NotEq,
}

/// Conntrack state of a packet (`ct state`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CtState {
    /// Belongs to a tracked connection.
    Established,
    /// Starts a connection, or is an ICMP error, that is related to a tracked connection.
    Related,
    /// Cannot be assigned to a connection.
    Invalid,
}

/// A condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// `ct state …`: the packet has one of the states.
    CtState(BTreeSet<CtState>),
    /// Compares a field with a value.
    Field(Field, CmpOp, Value),
    /// `iifname "prefix*"` or `oifname "prefix*"`: the interface name has this prefix. The field must be
    /// [`Field::InInterface`] or [`Field::OutInterface`].
    InterfacePrefix(Field, String),
    /// `ip saddr . meta l4proto . th dport @set`: looks up the concatenated fields in a named set.
    InSet(Vec<Field>, CmpOp, SetName),
    /// `meta mark & bits == bits`: all of these bits are set in the packet mark.
    MarkBits(u32),
    /// `ct mark & bits == bits`: all of these bits are set in the connection mark.
    ConnectionMarkBits(u32),
    /// `meta nfproto`: the packet is of this family.
    Family(Family),
    /// `icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }`: neighbour discovery by a host (RFC
    /// 4861).
    NeighbourDiscovery,
}

/// How evaluation of a packet ends or continues.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Ends the base chain. Base chains of the same hook with a higher priority value still evaluate the packet.
    Accept,
    /// Drops the packet.
    Drop,
    /// Continues in the calling chain. In a base chain, applies the policy, which is accept.
    Return,
    /// Evaluates the chain, then continues after this rule.
    Jump(ChainName),
    /// Evaluates the chain, then continues in the chain that called this one.
    Goto(ChainName),
}

/// The statement of a rule. It applies to packets that match all conditions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// A fixed verdict.
    Verdict(Verdict),
    /// `… vmap @map`: looks up the concatenated fields in a verdict map. Continues after the rule if no element matches.
    Dispatch(Vec<Field>, SetName),
    /// `masquerade fully-random`
    Masquerade,
    /// Sends the packet header to the agent and continues after the rule.
    Log(Log),
    /// `notrack`: excludes the packet from conntrack and so from NAT, and continues after the rule. Only effective in
    /// chains before conntrack, with a priority below -200 (linux/netfilter_ipv4.h).
    NoTrack,
}

/// `limit rate R/second burst B packets log prefix "…" group G snaplen S`: copies the beginning of the packet to the
/// listener of the nfnetlink_log group in this network namespace. Without a listener the statement does nothing. Each rule
/// has its own rate limit, so a flood of packets to one pod does not suppress the log of another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Log {
    /// Prefix of each log message: letters and hyphens, at most 127 bytes (`NF_LOG_PREFIXLEN` is 128 with the final NUL).
    pub prefix: &'static str,
    /// Group number of nfnetlink_log.
    pub group: u16,
    /// Number of bytes to copy, from the IP header on.
    pub snaplen: NonZeroU32,
    /// Average number of packets per second.
    pub rate: NonZeroU32,
    /// Number of packets that may exceed the rate after an idle period.
    pub burst: NonZeroU32,
}

/// A rule: conditions that must all match, and an action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Conditions in order of evaluation, cheapest first.
    pub matches: Vec<Match>,
    /// Statement for packets that match.
    pub action: Action,
}

/// A netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// `prerouting`
    Prerouting,
    /// `input`
    Input,
    /// `forward`
    Forward,
    /// `output`
    Output,
    /// `postrouting`
    Postrouting,
}

/// The type of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainType {
    /// `filter`
    Filter,
    /// `nat`: sees only the first packet of a connection.
    Nat,
}

/// Attaches a chain to a netfilter hook. The policy of the chain is always accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseChain {
    /// Type of the chain.
    pub chain_type: ChainType,
    /// Hook that the chain is attached to.
    pub hook: Hook,
    /// Order among the base chains of the hook, lowest first: raw is -300, filter 0, srcnat 100
    /// (linux/netfilter_ipv4.h).
    pub priority: i32,
}

/// A base chain or a regular chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// `None` for a regular chain.
    pub base: Option<BaseChain>,
    /// Rules in order of evaluation.
    pub rules: Vec<Rule>,
}

impl Rule {
    /// A rule that ends in a verdict.
    #[must_use]
    pub const fn verdict(matches: Vec<Match>, verdict: Verdict) -> Self {
        Self { matches, action: Action::Verdict(verdict) }
    }
}
