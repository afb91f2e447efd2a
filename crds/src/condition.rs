//! Condition types and reasons of both kinds, and the fold that sets `lastTransitionTime`.
//!
//! Reasons are API: programs and alerts match on them. No other text is used as a reason.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Longest message that is written, in characters; the API admits 32,768. A condition is read in a terminal.
pub const MAX_MESSAGE: usize = 1024;

/// Defines an enum whose variants are strings of the API, each named like its variant.
macro_rules! api_strings {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The string in the API.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }
        }

        impl From<$name> for &'static str {
            fn from(value: $name) -> Self {
                value.as_str()
            }
        }
    };
}

api_strings! {
    /// Condition types of a NetworkConfig.
    ConfigCondition {
        /// A person must act. Present only while True, and listed first.
        Stalled,
        /// Work is in progress. Present only while True.
        Reconciling,
        /// Every node runs the wanted revision and is healthy.
        Ready,
        /// The configuration fits the cluster.
        PreflightPassed,
    }
}

api_strings! {
    /// Reasons of a NetworkConfig's conditions.
    ConfigReason {
        /// Ready: every node runs the wanted revision and is healthy.
        AllNodesReady,
        /// Ready: agents are being replaced.
        RolloutInProgress,
        /// Ready: some nodes are degraded or unreachable.
        NodesNotReady,
        /// Ready, Stalled: a preflight check failed; the rollout is held.
        PreflightFailed,
        /// Ready, Stalled, PreflightPassed: the spec contradicts itself.
        InvalidConfiguration,
        /// Ready: `spec.managementState` is Unmanaged.
        Unmanaged,
        /// Reconciling: agents are being replaced.
        RollingOut,
        /// Reconciling, Ready: the data plane is being removed.
        TearingDown,
        /// Reconciling: the last attempt failed and is retried, or an object cannot be decoded.
        RetryingAfterError,
        /// PreflightPassed: no check failed.
        AllChecksPassed,
        /// PreflightPassed: pod, Service and node addresses overlap.
        CIDROverlap,
        /// PreflightPassed: a node's podCIDR is outside the pod network, or overlaps with another node's.
        PodCIDRConflict,
        /// PreflightPassed: no pod network is known, or a node has no podCIDR.
        PodCIDRMissing,
        /// PreflightPassed: the MTU does not fit a node's uplink.
        MTUTooLarge,
    }
}

api_strings! {
    /// Condition types of a NetworkNode.
    NodeCondition {
        /// Pods on the node have network connectivity, and their policies are enforced.
        Ready,
        /// The overlay device is up, and every peer is in the kernel.
        TunnelReady,
        /// The kernel enforces the current policies.
        PolicySynced,
    }
}

api_strings! {
    /// Reasons of a NetworkNode's conditions.
    NodeReason {
        /// Ready: the data path is up and the policies are enforced.
        DataPathReady,
        /// Ready: TunnelReady is not true.
        TunnelNotReady,
        /// Ready: PolicySynced is not true.
        PolicyNotSynced,
        /// Ready: the CNI plugin or its configuration cannot be written.
        InstallFailed,
        /// Ready: a firewall that is not Towpath's drops forwarded pod traffic; see `status.findings`.
        ForeignFirewall,
        /// Any: the agent has not yet applied its first plan.
        Starting,
        /// TunnelReady: the device and all peers are in the kernel.
        PeersProgrammed,
        /// TunnelReady: no interface matches `spec.interface`, or it has no usable address.
        UplinkNotFound,
        /// TunnelReady: the Node has no podCIDR.
        PodCIDRMissing,
        /// TunnelReady: the Node's podCIDR is outside the pod network.
        PodCIDROutsideNetwork,
        /// TunnelReady: the MTU does not fit the uplink.
        MTUTooLarge,
        /// TunnelReady: an annotation of the Node is malformed.
        InvalidAnnotation,
        /// TunnelReady: the kernel rejected the device or a peer's entries.
        ProgrammingFailed,
        /// TunnelReady: some peers publish malformed annotations and are skipped.
        InvalidPeer,
        /// PolicySynced: the kernel has the rules of the current policies.
        RulesInForce,
        /// PolicySynced: `spec.policy.mode` is Off.
        PolicyOff,
        /// PolicySynced: the kernel rejected the rules; the previous ones stay in force.
        ApplyFailed,
        /// Ready: the agent is removing Towpath from the node.
        TearingDown,
    }
}

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConditionStatus {
    /// The condition holds.
    True,
    /// The condition does not hold.
    False,
    /// Not known.
    Unknown,
}

impl ConditionStatus {
    /// The string in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for ConditionStatus {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// A condition to publish, before `lastTransitionTime` is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredCondition<Type, Reason> {
    /// The condition's type.
    pub type_: Type,
    /// The condition's status.
    pub status: ConditionStatus,
    /// The reason, for programs.
    pub reason: Reason,
    /// Why, and what to do, for people; truncated to [`MAX_MESSAGE`].
    pub message: String,
}

/// The conditions to publish: exactly those in `want`, in that order. `lastTransitionTime` is taken from `have` where the
/// status is the same, else `now`, which must have whole seconds, as the API keeps them.
pub fn fold<Type, Reason>(
    have: &[Condition],
    want: Vec<DesiredCondition<Type, Reason>>,
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition>
where
    Type: Into<&'static str>,
    Reason: Into<&'static str>,
{
    want.into_iter()
        .map(|condition| {
            let type_: &'static str = condition.type_.into();
            let status = condition.status.as_str();
            let since =
                have.iter().find(|c| c.type_ == type_ && c.status == status).map_or(now, |c| &c.last_transition_time);
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: condition.reason.into().to_owned(),
                message: truncate(condition.message),
                observed_generation: generation,
                last_transition_time: since.clone(),
            }
        })
        .collect()
}

/// The condition of this type, if there is one.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], type_: &'static str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

fn truncate(message: String) -> String {
    if message.chars().count() <= MAX_MESSAGE {
        return message;
    }
    message.chars().take(MAX_MESSAGE - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn ready(status: ConditionStatus, reason: NodeReason) -> DesiredCondition<NodeCondition, NodeReason> {
        DesiredCondition { type_: NodeCondition::Ready, status, reason, message: String::new() }
    }

    #[test]
    fn the_time_moves_only_when_the_status_flips() {
        let first = fold(&[], vec![ready(ConditionStatus::False, NodeReason::Starting)], None, &at(10));
        let second = fold(&first, vec![ready(ConditionStatus::False, NodeReason::TunnelNotReady)], None, &at(20));
        assert_eq!(second[0].last_transition_time, at(10), "a new reason is no flip");
        assert_eq!(second[0].reason, "TunnelNotReady");
        let third = fold(&second, vec![ready(ConditionStatus::True, NodeReason::DataPathReady)], Some(3), &at(30));
        assert_eq!(third[0].last_transition_time, at(30), "a flip");
        assert_eq!(third[0].observed_generation, Some(3));
    }

    #[test]
    fn a_condition_that_is_no_longer_wanted_is_removed() {
        let have = fold(&[], vec![ready(ConditionStatus::False, NodeReason::Starting)], None, &at(10));
        let want: Vec<DesiredCondition<NodeCondition, NodeReason>> = Vec::new();
        assert!(fold(&have, want, None, &at(20)).is_empty());
    }

    #[test]
    fn a_long_message_is_truncated_at_a_character() {
        let long = "ä".repeat(MAX_MESSAGE + 5);
        let condition = DesiredCondition { message: long, ..ready(ConditionStatus::False, NodeReason::Starting) };
        let message = fold(&[], vec![condition], None, &at(0)).remove(0).message;
        assert_eq!(message.chars().count(), MAX_MESSAGE);
        assert!(message.ends_with('…'));
    }
}
