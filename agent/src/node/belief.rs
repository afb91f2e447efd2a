//! What the node believes that the kernel has: how it comes in, and what makes it doubtful.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use towpath_core::{
    overlay::{self, Kernel},
    ruleset::{self, Installed, Ruleset, Transaction},
};
use towpath_local::Listing;
use tracing::warn;

use super::{Node, outcome::Outcome};
use crate::kernel::{Notice, ReadError};

/// How long changes are gathered before what they hint at is read back.
pub(super) const GATHER: Duration = Duration::from_millis(100);
/// Time between two full read-backs when nobody tells of any change, less or more a fifth.
const RESYNC: Duration = Duration::from_secs(300);

/// What is logged of a read-back that fails.
const NOT_ASKED: &str = "kernel not read";

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

impl Node {
    /// Somebody has changed something: the kernel says so.
    pub(super) fn noticed(&mut self, now: Instant, notice: &Notice) {
        match notice {
            Notice::Net(notices) => {
                if notices.iter().any(|notice| self.is_news(notice)) {
                    self.net.look_by(now + GATHER);
                }
            }
            Notice::Table => self.table.look_by(now),
        }
    }

    /// Whether it tells more than that our plan has come true.
    fn is_news(&self, notice: &overlay::NetNotification) -> bool {
        let path = self.plan.as_ref().and_then(|plan| plan.path.as_ref());
        match (path, &self.net.have) {
            (Some(path), Some(have)) => !path.overlay.expects(notice, have),
            _ => true,
        }
    }

    pub(super) fn have_net(&mut self, now: Instant, read: Result<(Box<Kernel>, Listing), ReadError>) {
        match read {
            Ok((kernel, listing)) => {
                for damaged in &listing.damaged {
                    warn!(error = damaged as &dyn Error, "pod's record left out");
                }
                let dirty = self.pods.reconcile(listing.endpoints, &mut self.index);
                self.mark(now, &dirty);
                let differs = self.net.have.as_ref() != Some(&*kernel);
                if differs || matches!(self.overlay_outcome, Outcome::Failed(_)) {
                    self.watching_drift |= !self.stale && self.overlay_outcome == Outcome::Done;
                    self.stale = true;
                    self.carried_out = None;
                }
                self.net = Belief { have: Some(*kernel), look: now + self.resync() };
            }
            Err(error) => {
                self.net.look = now + self.back_off.failed(NOT_ASKED, &error);
            }
        }
    }

    pub(super) fn have_table(&mut self, now: Instant, read: Result<Option<Box<Installed>>, ReadError>) {
        match read {
            Ok(installed) => {
                let installed = installed.map(|i| *i);
                // What is as we made it stays shared with the plan.
                if !self.table.have.as_ref().is_some_and(|have| have.reads_back_as(installed.as_ref())) {
                    self.watching_drift |= !self.stale && self.table.have.is_some();
                    self.stale = true;
                    self.table.have = Some(Have::Read(installed));
                }
                self.table.look = now + self.resync();
            }
            Err(error) => {
                self.table.look = now + self.back_off.failed(NOT_ASKED, &error);
            }
        }
    }

    fn resync(&self) -> Duration {
        RESYNC * (800 + self.identity.jitter * 2 / 5) / 1000
    }
}
