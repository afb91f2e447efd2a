//! What the node remembers of what it did: beliefs, outcomes, what is under way.

use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use towpath_core::{
    overlay::Op,
    ruleset::{self, Installed, Ruleset, Transaction},
};
use towpath_dataplane::local::NodeState;

/// What happened to our things without us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Drift {
    /// Repaired entries since the start.
    pub repairs: u64,
    /// The latest.
    pub last: Option<(String, Time)>,
}

/// How the last change of a kind went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing was tried yet.
    Untried,
    /// All is as planned.
    Done,
    /// It was refused: the first refusal, in words.
    Failed(String),
}

/// A part of the kernel's state as we believe it to be, and when to look again.
#[derive(Debug)]
pub(super) struct Belief<T> {
    /// What we believe; `None`: nothing is known.
    pub(super) have: Option<T>,
    /// When to look.
    pub(super) look: Instant,
}

/// Our table as we believe it to be.
#[derive(Debug)]
pub(super) enum Have {
    /// As it was read back; `None`: there is no table.
    Read(Option<Installed>),
    /// As we made it, and nobody has said otherwise.
    Made(Ruleset),
}

impl Have {
    /// What to do so that the table is as wanted.
    pub(super) fn change(&self, want: &Ruleset) -> Transaction {
        match self {
            Self::Read(have) => ruleset::diff(want, have.as_ref()),
            Self::Made(have) => ruleset::change(want, have),
        }
    }

    /// Whether a read-back says the same.
    pub(super) fn reads_back_as(&self, read: Option<&Installed>) -> bool {
        match self {
            Self::Read(have) => have.as_ref() == read,
            Self::Made(have) => Some(&have.installed()) == read,
        }
    }
}

impl<T> Belief<T> {
    pub(super) fn look_by(&mut self, at: Instant) {
        self.look = self.look.min(at);
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.look <= now
    }
}

/// Whether pods can be added, as far as files are concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opening {
    /// Not yet.
    Closed,
    /// These values are being written.
    Asked(NodeState),
    /// They are written.
    Open(NodeState),
    /// They could not be written, and are tried again then.
    Failed {
        /// In words.
        why: String,
        /// When.
        again: Instant,
    },
}

/// What the kernel's thread is doing for us.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Busy {
    No,
    Reading,
    /// These, beside the table.
    Applying(Vec<Op>),
}
