//! Our table as a value: sets, verdict maps and chains of typed rules, all ordered, so that the same input gives the same bytes.
//!
//! A [`Ruleset`] is what is wanted. It renders to nft's own language, and it can be run by an interpreter: the tests hold
//! the kernel, the interpreter and the policy evaluator together. It knows only the forms that we use; a form that is
//! not here cannot end up in the kernel.

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

/// Everything in our table. Its parts are shared with the rulesets that it was made from and is copied to: to copy it costs
/// nothing, and two versions are compared in proportion to their difference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Sets by name.
    pub sets: OrdMap<SetName, Set>,
    /// Verdict maps by name. Sets and maps share one name space in the kernel.
    pub maps: OrdMap<SetName, VerdictMap>,
    /// Chains by name.
    pub chains: OrdMap<ChainName, Arc<Chain>>,
    /// What `nft list` shows beside them.
    pub comments: Comments,
}

/// Comments of chains, sets and maps. The kernel takes a comment only when the object is created, so an object that exists
/// is never recreated for its comment's sake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comments {
    /// Of chains.
    pub chains: OrdMap<ChainName, Comment>,
    /// Of sets and verdict maps.
    pub sets: OrdMap<SetName, Comment>,
}

/// The type of one part of a set's key, as nft declares it.
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

/// How a set finds its elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lookup {
    /// By hash: single values only. A change of one element costs microseconds in the kernel.
    Hash,
    /// By intervals (flag `interval`): prefixes and ranges, never overlapping. Changes are slow (tens of milliseconds
    /// among ten thousand elements on kernel 6.18): only for what changes with policies.
    Interval,
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The parts of its key; more than one makes a concatenation.
    pub key: Vec<KeyType>,
    /// How it is looked up.
    pub lookup: Lookup,
    /// Its elements.
    pub elements: OrdSet<Element>,
}

/// A named verdict map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerdictMap {
    /// The parts of its key.
    pub key: Vec<KeyType>,
    /// What to do for each element.
    pub elements: OrdMap<Element, Verdict>,
}

/// The key of an element: one value for each part of the set's key.
pub type Element = Vec<Value>;

/// A value of one part of a key, or what a field is compared with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// An address.
    Addr(IpAddr),
    /// All addresses of a network. Single addresses are always [`Value::Addr`].
    Net(IpNet),
    /// An interface.
    IfName(IfName),
    /// A protocol number of the IP header.
    Proto(u8),
    /// A port.
    Port(u16),
    /// From the first port to the second, both included, the second greater.
    PortRange(u16, u16),
}

/// What of a packet is looked at.
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
    /// `th dport`; never matches where [`Field::Proto`] has no ports.
    DestinationPort,
}

impl Field {
    /// The part of a set's key that it is looked up by.
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

/// Equal, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CmpOp {
    /// `==`
    Eq,
    /// `!=`
    NotEq,
}

/// States of connection tracking (nf_conntrack).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CtState {
    /// Belongs to a known connection.
    Established,
    /// Is an error or a helper's connection that belongs to a known one.
    Related,
    /// Cannot be tracked.
    Invalid,
}

/// One condition of a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Match {
    /// `ct state …`: any of the states.
    CtState(BTreeSet<CtState>),
    /// A field against one value.
    Field(Field, CmpOp, Value),
    /// `iifname "prefix*"` or `oifname "prefix*"`: the interface's name begins so. The field is one of the two interfaces.
    InterfacePrefix(Field, String),
    /// `ip saddr . meta l4proto . th dport @set`: the concatenated fields against a named set.
    InSet(Vec<Field>, CmpOp, SetName),
    /// `meta mark & bits == bits`: all of the bits are set, whatever the others are.
    MarkBits(u32),
    /// `ct mark & bits == bits`: the same of the connection's mark.
    ConnectionMarkBits(u32),
    /// `meta nfproto`: packets of this family.
    Family(Family),
    /// `icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }`: what a host sends to find its
    /// neighbours (RFC 4861).
    NeighbourDiscovery,
}

/// Where a packet goes next.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Leaves this base chain; base chains of the same hook with a greater priority still see it.
    Accept,
    /// Is gone.
    Drop,
    /// Back to the calling chain; at the end of a base chain, accepted.
    Return,
    /// Goes through the chain and comes back behind this rule.
    Jump(ChainName),
    /// Goes through the chain and does not come back here.
    Goto(ChainName),
}

/// What a rule does with a packet that all of its conditions hold for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// A verdict.
    Verdict(Verdict),
    /// `… vmap @map`: the verdict found under the concatenated fields; none found: go on behind the rule.
    Dispatch(Vec<Field>, SetName),
    /// `masquerade fully-random`
    Masquerade,
    /// Tells the agent of the packet and goes on behind the rule.
    Log(Log),
    /// `notrack`: connection tracking passes the packet over, and so does NAT. Means something in chains that come before
    /// it only, at priorities below -200 (linux/netfilter_ipv4.h). Goes on behind the rule.
    NoTrack,
}

/// `limit rate R/second burst B packets log prefix "…" group G snaplen S`: a copy of the packet's head to whoever has
/// bound the group in this network namespace (nfnetlink_log); with nobody there it is a cheap nothing. The rate is one
/// bucket per rule, so that a flood at one pod's chain hides nothing of another's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Log {
    /// Told with each packet: letters and hyphens, at most 127 bytes (`NF_LOG_PREFIXLEN` with its final zero).
    pub prefix: &'static str,
    /// The group of nfnetlink_log.
    pub group: u16,
    /// How many bytes of the packet are told, from the IP header on.
    pub snaplen: NonZeroU32,
    /// Packets per second in the long run.
    pub rate: NonZeroU32,
    /// Packets at once after a quiet time.
    pub burst: NonZeroU32,
}

/// Conditions, all of which must hold, and an action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// The conditions, cheapest first.
    pub matches: Vec<Match>,
    /// The action.
    pub action: Action,
}

/// Where a base chain hangs.
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

/// What a base chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainType {
    /// `filter`
    Filter,
    /// `nat`: sees only the first packet of a connection.
    Nat,
}

/// How a base chain hangs in the packet's way. Its policy is always accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct BaseChain {
    /// Filter or NAT.
    pub chain_type: ChainType,
    /// The hook.
    pub hook: Hook,
    /// Smaller is earlier; 0 is iptables' filter, -300 its raw, 100 its source NAT (linux/netfilter_ipv4.h).
    pub priority: i32,
}

/// A chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    /// Set for a base chain.
    pub base: Option<BaseChain>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

impl Rule {
    /// A rule that ends in a verdict.
    #[must_use]
    pub const fn verdict(matches: Vec<Match>, verdict: Verdict) -> Self {
        Self { matches, action: Action::Verdict(verdict) }
    }
}
