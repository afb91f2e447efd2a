//! The Events that the operator emits: each on a transition, once. Pure.

use towpath_crds::{
    NetworkConfigStatus,
    condition::{self, ConfigCondition, ConfigReason},
};

/// Reasons of the operator's Events. Like reasons of conditions they are API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventReason {
    /// A rollout of a new revision or image started.
    RolloutStarted,
    /// Ready became True.
    AllNodesReady,
    /// Some nodes became degraded or unreachable.
    NodesNotReady,
    /// Somebody else changed or deleted a child; it is restored.
    DriftRepaired,
    /// A preflight check started to fail.
    PreflightFailed,
    /// The spec contradicts itself.
    InvalidConfiguration,
    /// The NetworkConfig was deleted; agents and data plane keep running.
    Orphaned,
    /// The removal of the data plane started.
    TeardownStarted,
    /// Every node is clean.
    TeardownComplete,
    /// The bound is over and some nodes are not clean.
    TeardownIncomplete,
    /// A part of a NetworkPolicy cannot be enforced as written.
    PolicyPartRejected,
}

impl EventReason {
    /// The reason as it stands in the Event.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RolloutStarted => "RolloutStarted",
            Self::AllNodesReady => "AllNodesReady",
            Self::NodesNotReady => "NodesNotReady",
            Self::DriftRepaired => "DriftRepaired",
            Self::PreflightFailed => "PreflightFailed",
            Self::InvalidConfiguration => "InvalidConfiguration",
            Self::Orphaned => "Orphaned",
            Self::TeardownStarted => "TeardownStarted",
            Self::TeardownComplete => "TeardownComplete",
            Self::TeardownIncomplete => "TeardownIncomplete",
            Self::PolicyPartRejected => "PolicyPartRejected",
        }
    }

    /// The type of the Event.
    #[must_use]
    pub const fn severity(self) -> EventSeverity {
        match self {
            Self::RolloutStarted
            | Self::AllNodesReady
            | Self::Orphaned
            | Self::TeardownStarted
            | Self::TeardownComplete => EventSeverity::Normal,
            Self::NodesNotReady
            | Self::DriftRepaired
            | Self::PreflightFailed
            | Self::InvalidConfiguration
            | Self::TeardownIncomplete
            | Self::PolicyPartRejected => EventSeverity::Warning,
        }
    }
}

/// The type of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSeverity {
    /// Expected; nothing needs to be done.
    Normal,
    /// Something may need attention.
    Warning,
}

/// An Event to emit, on the NetworkConfig or on a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorEvent {
    /// The reason, for programs.
    pub reason: EventReason,
    /// What happened, for people.
    pub note: String,
}

impl OperatorEvent {
    /// An Event; the note is truncated to what the API admits (1 kB).
    #[must_use]
    pub fn new(reason: EventReason, note: impl Into<String>) -> Self {
        let mut note: String = note.into();
        if note.len() > 1000 {
            let end = (0..=1000).rev().find(|&i| note.is_char_boundary(i)).unwrap_or(0);
            note.truncate(end);
        }
        Self { reason, note }
    }
}

/// The Events for the change from one status to the next.
#[must_use]
pub fn on_transition(before: Option<&NetworkConfigStatus>, after: &NetworkConfigStatus) -> Vec<OperatorEvent> {
    let mut events = Vec::new();
    let before = before.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let was = |type_: ConfigCondition| condition::find(before, type_.as_str());
    let is = |type_: ConfigCondition| condition::find(&after.conditions, type_.as_str());

    if let Some(now) = is(ConfigCondition::PreflightPassed).filter(|c| c.status == "False") {
        let reported =
            was(ConfigCondition::PreflightPassed).is_some_and(|c| c.status == "False" && c.reason == now.reason);
        if !reported {
            let invalid = now.reason == ConfigReason::InvalidConfiguration.as_str();
            let reason = if invalid { EventReason::InvalidConfiguration } else { EventReason::PreflightFailed };
            events.push(OperatorEvent::new(reason, format!("{}: {}", now.reason, now.message)));
        }
    }
    if let Some(now) = is(ConfigCondition::Ready) {
        let was_ready = was(ConfigCondition::Ready).is_some_and(|c| c.status == "True");
        let reported = was(ConfigCondition::Ready).is_some_and(|c| c.reason == now.reason);
        if now.status == "True" && !was_ready {
            events.push(OperatorEvent::new(EventReason::AllNodesReady, &now.message));
        }
        if now.reason == ConfigReason::NodesNotReady.as_str() && !reported {
            events.push(OperatorEvent::new(EventReason::NodesNotReady, &now.message));
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use towpath_crds::condition::{ConditionStatus, DesiredCondition};

    use super::*;
    use crate::testing::now;

    fn status(wanted: &[(ConfigCondition, ConditionStatus, ConfigReason)]) -> NetworkConfigStatus {
        let wanted = wanted
            .iter()
            .map(|&(type_, status, reason)| DesiredCondition { type_, status, reason, message: "m".to_owned() })
            .collect();
        let conditions = condition::fold(&[], wanted, Some(1), &Time(now()));
        NetworkConfigStatus { conditions, ..NetworkConfigStatus::default() }
    }

    #[test]
    fn a_transition_is_emitted_once() {
        use ConditionStatus::{False, True};
        use ConfigCondition::{PreflightPassed, Ready};
        let ready = status(&[(Ready, True, ConfigReason::AllNodesReady)]);
        let broken = status(&[(Ready, False, ConfigReason::NodesNotReady)]);
        let rolling = status(&[(Ready, False, ConfigReason::RolloutInProgress)]);
        let overlap = status(&[(PreflightPassed, False, ConfigReason::CIDROverlap)]);
        let missing = status(&[(PreflightPassed, False, ConfigReason::PodCIDRMissing)]);
        let invalid = status(&[(PreflightPassed, False, ConfigReason::InvalidConfiguration)]);
        let cases: [(Option<&NetworkConfigStatus>, &NetworkConfigStatus, &[EventReason], &str); 9] = [
            (None, &ready, &[EventReason::AllNodesReady], "first"),
            (Some(&ready), &ready, &[], "still"),
            (Some(&ready), &broken, &[EventReason::NodesNotReady], "broke"),
            (Some(&broken), &broken, &[], "still broken"),
            (Some(&ready), &rolling, &[], "RolloutStarted is emitted with the write"),
            (None, &overlap, &[EventReason::PreflightFailed], "failed"),
            (Some(&overlap), &overlap, &[], "still failing"),
            (Some(&overlap), &missing, &[EventReason::PreflightFailed], "failing for another reason"),
            (None, &invalid, &[EventReason::InvalidConfiguration], "a contradiction"),
        ];
        for (before, after, want, why) in cases {
            let have: Vec<_> = on_transition(before, after).iter().map(|n| n.reason).collect();
            assert_eq!(have, want, "{why}");
        }
    }

    #[test]
    fn a_note_fits_into_an_event() {
        assert!(OperatorEvent::new(EventReason::Orphaned, "ä".repeat(2000)).note.len() <= 1024);
    }
}
