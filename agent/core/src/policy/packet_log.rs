//! Rules that log packets to the agent over nfnetlink_log.
//!
//! Each rule of a pod's chain that drops is preceded by a rule that logs the same packets. A policy rule with action Log
//! becomes a log rule of its own. An accepted packet that no policy logs matches neither.

use std::num::NonZeroU32;

use super::ir::Direction;
use crate::ruleset::{Action, Log, Match, Rule};

/// The nfnetlink_log group of the agent. The number is arbitrary; other programs commonly use 0 to 5.
pub const GROUP: u16 = 9817;
/// Bytes of a packet that the kernel copies to the agent: IPv6 header (40), some extension headers, and ports.
pub const SNAPLEN: u32 = 128;
/// Rate limit of each log rule: packets per second, and burst. High enough to show every peer of a misconfigured
/// policy, low enough that a scan or a flood costs the agent no noticeable CPU time.
const RATE: (u32, u32) = (10, 20);

/// Whether packets that policy drops are logged. Policy rules with action Log log in either case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DenyLog {
    /// Log dropped packets at a limited rate.
    Enabled,
    /// Do not log dropped packets.
    Disabled,
}

/// Why a packet was logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Policy drops the packet.
    Denied,
    /// A policy rule with action Log matches the packet. A later rule decides about it.
    Logged,
}

impl Reason {
    const ALL: [Self; 2] = [Self::Denied, Self::Logged];
}

/// The log prefix: the kernel sends it with each packet. It encodes the reason and the direction of the policy.
#[must_use]
pub const fn prefix(reason: Reason, direction: Direction) -> &'static str {
    match (reason, direction) {
        (Reason::Denied, Direction::Ingress) => "towpath-in",
        (Reason::Denied, Direction::Egress) => "towpath-out",
        (Reason::Logged, Direction::Ingress) => "towpath-log-in",
        (Reason::Logged, Direction::Egress) => "towpath-log-out",
    }
}

/// Parses a log prefix; `None` if it is not one of [`prefix`].
#[must_use]
pub fn read_prefix(text: &str) -> Option<(Reason, Direction)> {
    let all = Reason::ALL.into_iter().flat_map(|reason| Direction::ALL.map(|direction| (reason, direction)));
    all.into_iter().find(|(reason, direction)| prefix(*reason, *direction) == text)
}

/// A rule that logs the packets that match.
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
    fn every_prefix_is_parsed_back_and_any_other_text_is_rejected() {
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
