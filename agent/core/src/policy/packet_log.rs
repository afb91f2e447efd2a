//! How the kernel tells of packets: in front of each rule of a pod's chain that drops, a rule that logs the same packets;
//! and one where a policy's own rule says Log. A packet that is let through and that no policy logs meets neither.

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

/// Whether dropped packets are told of. What a policy's own rule logs is told of in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DenyLog {
    /// They are, at a limited rate.
    Enabled,
    /// They are not.
    Disabled,
}

/// Why the kernel tells of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is dropped.
    Denied,
    /// A rule of a policy logs it; what becomes of it is decided behind that rule.
    Logged,
}

impl Reason {
    const ALL: [Self; 2] = [Self::Denied, Self::Logged];
}

/// What the kernel says with each packet: why it tells of it, and the direction of the policy.
#[must_use]
pub const fn prefix(reason: Reason, direction: Direction) -> &'static str {
    match (reason, direction) {
        (Reason::Denied, Direction::Ingress) => "towpath-in",
        (Reason::Denied, Direction::Egress) => "towpath-out",
        (Reason::Logged, Direction::Ingress) => "towpath-log-in",
        (Reason::Logged, Direction::Egress) => "towpath-log-out",
    }
}

/// What a prefix says; `None` for what is not ours.
#[must_use]
pub fn read_prefix(text: &str) -> Option<(Reason, Direction)> {
    let all = Reason::ALL.into_iter().flat_map(|reason| Direction::ALL.map(|direction| (reason, direction)));
    all.into_iter().find(|(reason, direction)| prefix(*reason, *direction) == text)
}

/// The rule that tells of packets for which these conditions hold.
pub(super) fn rule(reason: Reason, direction: Direction, matches: Vec<Match>) -> Rule {
    let positive = |n| NonZeroU32::new(n).expect("the numbers above are positive");
    let log = Log {
        prefix: prefix(reason, direction),
        group: GROUP,
        snaplen: positive(SNAPLEN),
        rate: positive(RATE.0),
        burst: positive(RATE.1),
    };
    Rule { matches, action: Action::Log(log) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_says_is_understood_and_nothing_else_is() {
        for reason in Reason::ALL {
            for direction in Direction::ALL {
                assert_eq!(read_prefix(prefix(reason, direction)), Some((reason, direction)));
            }
        }
        for text in ["", "towpath", "towpath-", "towpath-into", "towpath-log", "TOWPATH-IN", " towpath-in", "ufw"] {
            assert_eq!(read_prefix(text), None, "{text:?}");
        }
    }
}
