//! How the kernel tells of what a policy drops: in front of each rule of a pod's chain that drops, one that logs the same
//! packets. A packet that is let through meets neither.

use std::num::NonZeroU32;

use super::ir::Direction;
use crate::ruleset::{Action, Log, Match, Rule};

/// The group of nfnetlink_log that the agent listens to. Any number would do; other programs' habits are 0 to 5.
pub const GROUP: u16 = 9817;
/// How many bytes of a packet are told: IPv6's header (40), some extension headers and the ports.
pub const SNAPLEN: u32 = 128;
/// Packets per second and chain in the long run, and at once after a quiet time: enough to see every peer of an
/// ordinary mistake, little enough that a scan or a flood costs the agent nothing that one would notice.
const RATE: (u32, u32) = (10, 20);

/// Whether dropped packets are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DenyLog {
    /// They are, at a limited rate.
    Enabled,
    /// The rules hold no log.
    Disabled,
}

/// What the kernel says with each packet: the direction of the policy that dropped it.
#[must_use]
pub const fn prefix(direction: Direction) -> &'static str {
    match direction {
        Direction::Ingress => "towpath-in",
        Direction::Egress => "towpath-out",
    }
}

/// The direction that a prefix says; `None` for what is not ours.
#[must_use]
pub fn direction(text: &str) -> Option<Direction> {
    Direction::ALL.into_iter().find(|direction| prefix(*direction) == text)
}

/// The rule that tells of packets for which these conditions hold.
pub(super) fn rule(direction: Direction, matches: Vec<Match>) -> Rule {
    let positive = |n| NonZeroU32::new(n).expect("the numbers above are positive");
    let log = Log {
        prefix: prefix(direction),
        group: GROUP,
        snaplen: positive(SNAPLEN),
        rate: positive(RATE.0),
        burst: positive(RATE.1),
    };
    Rule { matches, action: Action::Log(log) }
}
