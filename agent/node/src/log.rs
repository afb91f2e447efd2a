//! The lines of the log, as values: the agent's effect executor writes them.

use std::time::Duration;

use crate::input::Attachment;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogLine {
    /// A step failed, and is tried again.
    Failed {
        /// The step.
        step: FailedStep,
        /// The error with its causes.
        error: String,
        /// The pause before the next attempt.
        retry_in: Duration,
        /// Whether it is the first failure in a row.
        first: bool,
    },
    /// The CNI files are written.
    CniReady {
        /// The MTU of pods in bytes.
        mtu: u32,
    },
    /// The CNI files could not be written.
    CniNotReady {
        /// The error with its causes.
        error: String,
    },
    /// A condition of the NetworkNode has another reason.
    ConditionChanged {
        /// The condition's type.
        condition: String,
        /// Its new status.
        status: String,
        /// Its new reason.
        reason: String,
        /// Its new message.
        detail: String,
    },
    /// Somebody else changed our kernel objects.
    DriftRepaired {
        /// How many objects.
        repairs: usize,
        /// The first.
        first: String,
    },
    /// A pod's endpoint file vanished without a DEL.
    PodVanished {
        /// The pod's attachment.
        attachment: Attachment,
    },
    /// The start of a pod waited too long for its rules, and failed.
    PodTimedOut {
        /// The pod's attachment.
        attachment: Attachment,
        /// What it waited for.
        reason: &'static str,
    },
    /// Connections were revoked.
    Revoked {
        /// How many.
        count: usize,
        /// Duration of the policy re-evaluation.
        took: Duration,
        /// Some of them, with the policy that denies them.
        examples: String,
    },
    /// Revoked connections are allowed again.
    Restored {
        /// How many.
        count: usize,
        /// Duration of the policy re-evaluation.
        took: Duration,
    },
}

/// A step that is tried again after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedStep {
    /// Reading the kernel's state back.
    ReadBack,
    /// Changing the kernel.
    Apply,
    /// Policy re-evaluation of established connections.
    Reevaluate,
    /// Flushing the conntrack entries of addresses.
    Flush,
}
