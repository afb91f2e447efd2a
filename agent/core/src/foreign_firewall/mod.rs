//! Firewalls of other programs that drop pod traffic at the forward hook: Docker, firewalld, ufw, rules by hand.
//!
//! A packet must pass every base chain of a hook; an accept in our table does not undo a drop in another one. So a node
//! with a foreign chain of policy drop cuts all of its pods off, while everything of ours is in place. What other tables
//! hold comes in as [`ForeignTable`]s, reduced to what the evaluation understands; [`findings`] walks their base chains
//! with the traffic that must pass ([`PodTraffic`]) and names each chain that drops it.
//!
//! Only the first packet of a connection between two pods is walked: the firewalls of hosts accept what belongs to a
//! connection that they have accepted. A condition that cannot be evaluated (a mark, a named set) is assumed not to hold;
//! where it could have let the packet pass, the finding is [`Certainty::Possible`].
//!
//! Deliberately absent: other hooks, the bridge family, iptables-legacy (nf_tables does not show it), and traffic that
//! leaves the cluster, which a host's firewall may well restrict.

mod evaluate;
mod finding;
mod model;
#[cfg(test)]
mod tests;

pub use finding::{Certainty, DropCause, ForwardDrop, findings};
pub use model::{
    ChainPolicy, Comparison, FlowSide, ForeignAction, ForeignChain, ForeignCondition, ForeignRule, ForeignTable,
    ForwardHook, PodFlow, PodTraffic, TableFamily,
};
