//! The lines of the log, as values: the agent's effect executor writes them.

use std::time::Duration;

use crate::input::Attachment;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are named for what they are")]
pub enum LogLine {
    /// A step failed, and is tried again.
    Failed {
        step: FailedStep,
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
    CniNotReady { error: String },
    /// A condition of the NetworkNode has another reason.
    ConditionChanged { condition: String, status: String, reason: String, detail: String },
    /// Somebody else changed our kernel objects.
    DriftRepaired {
        /// How many objects.
        repairs: usize,
        first: String,
    },
    /// A pod's endpoint file vanished without a DEL.
    PodVanished { attachment: Attachment },
    /// The start of a pod waited too long for its rules, and failed.
    PodTimedOut { attachment: Attachment, reason: &'static str },
    /// Connections were revoked.
    Revoked {
        count: usize,
        /// Duration of the policy re-evaluation.
        took: Duration,
        /// Some of them, with the policy that denies them.
        examples: String,
    },
    /// Revoked connections are allowed again.
    Restored {
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
