//! References of rules and verdicts to chains, sets and maps.

use super::{Action, Match, Rule, Verdict};
use crate::names::{ChainName, SetName};

/// A reference to an object. The kernel requires that the object exists before it is referenced, and refuses to delete
/// it while it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'a> {
    /// A set or a map.
    Set(&'a SetName),
    /// A regular chain.
    Chain(&'a ChainName),
}

impl Verdict {
    /// The chain that a jump or goto leads to.
    #[must_use]
    pub const fn target(&self) -> Option<&ChainName> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }
}

impl Rule {
    /// All sets, maps and chains that the rule refers to.
    pub fn references(&self) -> impl Iterator<Item = Reference<'_>> {
        let sets = self.matches.iter().filter_map(|m| match m {
            Match::InSet(_, _, set) => Some(Reference::Set(set)),
            Match::CtState(_)
            | Match::Field(..)
            | Match::InterfacePrefix(..)
            | Match::MarkBits(_)
            | Match::ConnectionMarkBits(_)
            | Match::Family(_)
            | Match::NeighbourDiscovery => None,
        });
        let action = match &self.action {
            Action::Verdict(verdict) => verdict.target().map(Reference::Chain),
            Action::Dispatch(_, map) => Some(Reference::Set(map)),
            Action::Masquerade | Action::Log(_) | Action::NoTrack => None,
        };
        sets.chain(action)
    }
}
