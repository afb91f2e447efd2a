//! What the node has read back from the kernel or written to it, and how the last change went.

use std::time::Instant;

use towpath_core::{
    connection::AffectedPods,
    overlay::{Kernel, NetOp, Overlay},
    ruleset::{self, Installed, Ruleset, Transaction},
};

/// A cached part of the kernel's state, and when it is read back at the latest.
#[derive(Debug)]
pub(crate) struct Cached<T> {
    pub(crate) state: T,
    pub(crate) resync_at: Instant,
}

impl<T> Cached<T> {
    pub(crate) fn resync_by(&mut self, at: Instant) {
        self.resync_at = self.resync_at.min(at);
    }

    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.resync_at <= now
    }
}

/// Our table.
#[derive(Debug)]
pub(crate) enum TableState {
    /// Never read back.
    Unread,
    /// Read back, and not compared with a plan yet.
    Read(TableContent),
    /// The rules of the last plan are in force, unless another process has changed them since.
    InForce(TableContent),
    /// The kernel rejected the last transaction. The content is unknown until it is read back, and is replaced as a whole:
    /// a difference that was rejected would be rejected again.
    Rejected { error: String, content: Option<TableContent> },
}

/// The content of our table.
#[derive(Debug)]
pub(crate) enum TableContent {
    /// As it was read back; `None`: there is no table.
    ReadBack(Option<Installed>),
    /// As it was committed. It shares its parts with the plan.
    Committed(Ruleset),
}

impl TableContent {
    /// The transaction that makes the table as wanted.
    pub(crate) fn diff(&self, want: &Ruleset) -> Transaction {
        match self {
            Self::ReadBack(have) => ruleset::diff(want, have.as_ref()),
            Self::Committed(have) => ruleset::change(want, have),
        }
    }

    /// Whether a read-back gives the same content.
    pub(crate) fn equals(&self, read: Option<&Installed>) -> bool {
        match self {
            Self::ReadBack(have) => have.as_ref() == read,
            Self::Committed(have) => Some(&have.installed()) == read,
        }
    }
}

impl TableState {
    pub(crate) const fn content(&self) -> Option<&TableContent> {
        match self {
            Self::Unread => None,
            Self::Read(content) | Self::InForce(content) => Some(content),
            Self::Rejected { content, .. } => content.as_ref(),
        }
    }

    /// The transaction that makes the table as wanted; `None` as long as its content is unknown.
    pub(crate) fn diff(&self, want: &Ruleset) -> Option<Transaction> {
        match self {
            Self::Unread | Self::Rejected { content: None, .. } => None,
            Self::Read(content) | Self::InForce(content) => Some(content.diff(want)),
            Self::Rejected { content: Some(_), .. } => Some(Transaction::replace(want)),
        }
    }

    /// Takes a read-back that differs from the content.
    pub(crate) fn replace_content(&mut self, read: Option<Installed>) {
        let content = TableContent::ReadBack(read);
        *self = match std::mem::replace(self, Self::Unread) {
            Self::Unread | Self::Read(_) => Self::Read(content),
            Self::InForce(_) => Self::InForce(content),
            Self::Rejected { error, .. } => Self::Rejected { error, content: Some(content) },
        };
    }
}

/// Links, addresses, neighbours, FDB entries, routes and sysctls.
#[derive(Debug)]
pub(crate) enum NetworkState {
    /// Never read back.
    Unread,
    /// Read back, and kept up to date with what was applied since.
    Read { have: Box<Kernel>, progress: Progress },
}

/// How far the overlay is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing was applied yet.
    Untried,
    /// All of the last plan was applied. With the overlay, if the kernel is known to have exactly that of ours: then the next
    /// plan is compared with it; without, with everything that was read back.
    Applied(Option<Overlay>),
    /// The kernel rejected some changes: the error of the first.
    Failed(String),
}

/// What the kernel thread does for the node.
#[derive(Debug)]
pub(crate) enum Work {
    Idle,
    Reading,
    Applying(Applying),
}

/// A change that the kernel thread makes.
#[derive(Debug)]
pub(crate) struct Applying {
    /// The network's part.
    pub(crate) ops: Vec<NetOp>,
    /// The pods whose established connections the change may deny or allow again.
    pub(crate) affected: AffectedPods,
    /// When the first change arrived that concerns policy and is committed with this one.
    pub(crate) policy_since: Option<Instant>,
}

/// Whether the plan follows from what is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Freshness {
    Current,
    /// It has to be made again.
    Dirty {
        cause: DirtyCause,
        /// When the first change arrived that concerns policy and is not committed.
        policy_since: Option<Instant>,
    },
}

/// Why the plan has to be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DirtyCause {
    /// The cluster changed, or one of our own changes failed.
    Wanted,
    /// Only the kernel's state differs from what we applied: what the next change repairs is drift.
    Drift,
}
