//! Our one table: what every node has (anti-spoofing, the overlay guard, dispatch, masquerade) with the compiled policy merged in.

use std::collections::BTreeMap;

use crate::{
    names::{ChainName, IfName, SetName},
    ruleset::{Chain, Set},
};

/// The compiled policy, to be merged into the table.
///
/// A chain of a pod decides with `accept` and `drop`; a packet that comes to the end of the chain is dropped, too (fail closed).
/// Established and related packets never get there. Names must not meet those of the table itself, which have no
/// dot: names of the policy part contain one (`in.0a1b2c…`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicyPart {
    /// Sets that the chains look into.
    pub sets: BTreeMap<SetName, Set>,
    /// Regular chains, one for all pods to which the same policies apply in the same direction.
    pub chains: BTreeMap<ChainName, Chain>,
    /// The chain for packets to a pod's interface. A known interface that is not here is not isolated: accepted.
    pub ingress: BTreeMap<IfName, ChainName>,
    /// The chain for packets from a pod's interface, as [`PolicyPart::ingress`].
    pub egress: BTreeMap<IfName, ChainName>,
}
