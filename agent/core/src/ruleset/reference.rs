//! What rules and verdicts name.

use super::{Action, Match, Rule, Verdict};
use crate::names::{ChainName, SetName};

/// Something that must be there while it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reference<'a> {
    /// A set or a map.
    Set(&'a SetName),
    /// A regular chain.
    Chain(&'a ChainName),
}

impl Verdict {
    /// The chain that it goes to.
    #[must_use]
    pub const fn target(&self) -> Option<&ChainName> {
        match self {
            Self::Jump(chain) | Self::Goto(chain) => Some(chain),
            Self::Accept | Self::Drop | Self::Return => None,
        }
    }
}

impl Rule {
    /// All that it names.
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
