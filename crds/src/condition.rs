//! Condition types and reasons of both kinds, and the fold that keeps `lastTransitionTime` truthful.
//!
//! Reasons are API: programs and alerts match on them. No other text may be used as a reason.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Longest message that is written, in characters: a condition is read in a terminal.
pub const MAX_MESSAGE: usize = 1024;

/// Defines a unit enum whose variants are written in the API by their own names.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word as it stands in the API.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => stringify!($variant),)+ }
            }
        }

        impl From<$name> for &'static str {
            fn from(word: $name) -> Self {
                word.as_str()
            }
        }
    };
}

words! {
    /// Condition types of a NetworkConfig.
    ConfigCondition {
        /// A person must act. Present only while true, and listed first.
        Stalled,
        /// Work is in progress. Present only while true.
        Reconciling,
        /// Every node runs the wanted revision and is healthy.
        Ready,
        /// Nothing in the cluster forbids the configuration.
        PreflightPassed,
    }
}

words! {
    /// Reasons of a NetworkConfig's conditions.
    ConfigReason {
        /// Ready: every node runs the wanted revision and is healthy.
        AllNodesReady,
        /// Ready: agents are being replaced.
        RolloutInProgress,
        /// Ready: some nodes report a failure or nothing.
        NodesNotReady,
        /// Ready, Stalled: a preflight check failed; nothing was rolled out.
        PreflightFailed,
        /// Ready, Stalled, PreflightPassed: the spec contradicts itself.
        InvalidConfiguration,
        /// Ready: `spec.managementState` is Unmanaged.
        Unmanaged,
        /// Reconciling: agents are being replaced.
        RollingOut,
        /// Reconciling, Ready: the data plane is being removed.
        TearingDown,
        /// Reconciling: the last attempt failed; another follows.
        RetryingAfterError,
        /// PreflightPassed: all is well.
        AllChecksPassed,
        /// PreflightPassed: pod, Service and node addresses overlap.
        CIDROverlap,
        /// PreflightPassed: a node's podCIDR lies outside the pod network.
        PodCIDRConflict,
        /// PreflightPassed: no pod network is known, or a node has no podCIDR.
        PodCIDRMissing,
        /// PreflightPassed: the MTU does not fit a node's uplink.
        MTUTooLarge,
    }
}

words! {
    /// Condition types of a NetworkNode.
    NodeCondition {
        /// The node's pods have their network and their policies.
        Ready,
        /// The overlay device is up and every peer is programmed.
        TunnelReady,
        /// The kernel enforces the policies as they are in the API.
        PolicySynced,
    }
}

words! {
    /// Reasons of a NetworkNode's conditions.
    NodeReason {
        /// Ready: the data path is up and the policies are in force.
        DataPathReady,
        /// Ready: TunnelReady is not true.
        TunnelNotReady,
        /// Ready: PolicySynced is not true.
        PolicyNotSynced,
        /// Ready: the CNI plugin or its configuration could not be written.
        InstallFailed,
        /// Ready: a firewall that is not ours drops forwarded pod traffic; see `status.findings`.
        ForeignFirewall,
        /// Any: the agent has started and has not finished its first round.
        Starting,
        /// TunnelReady: device and all peers are in the kernel.
        PeersProgrammed,
        /// TunnelReady: no interface fits `spec.interface`, or it has no usable address.
        UplinkNotFound,
        /// TunnelReady: the Node has no podCIDR.
        PodCIDRMissing,
        /// TunnelReady: the Node's podCIDR lies outside the pod network.
        PodCIDROutsideNetwork,
        /// TunnelReady: the MTU does not fit the uplink.
        MTUTooLarge,
        /// TunnelReady: the Node's own annotations are malformed.
        InvalidAnnotation,
        /// TunnelReady: the kernel refused the device, or entries of peers.
        ProgrammingFailed,
        /// TunnelReady: what some peers publish is malformed; those are left out.
        InvalidPeer,
        /// PolicySynced: the kernel has the rules of the latest policies.
        RulesInForce,
        /// PolicySynced: `spec.policy.mode` is Off.
        PolicyOff,
        /// PolicySynced: the kernel refused the rules; the former ones stay.
        ApplyFailed,
        /// Ready: the agent removes everything of ours from the node.
        TearingDown,
    }
}

/// Truth of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// It is so.
    True,
    /// It is not so.
    False,
    /// Nobody knows.
    Unknown,
}

impl Truth {
    /// The word as it stands in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// A condition as it should read, before it has a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict<Type, Reason> {
    /// The aspect.
    pub type_: Type,
    /// Whether it is so.
    pub status: Truth,
    /// Why, for programs.
    pub reason: Reason,
    /// Why and what to do, for people; cut at [`MAX_MESSAGE`].
    pub message: String,
}

/// The conditions to publish: exactly those wanted, in that order; `lastTransitionTime` is kept from `have` where the
/// status is the same. Times have whole seconds, as the API keeps them.
pub fn fold<Type, Reason>(
    have: &[Condition],
    want: Vec<Verdict<Type, Reason>>,
    generation: Option<i64>,
    now: &Time,
) -> Vec<Condition>
where
    Type: Into<&'static str>,
    Reason: Into<&'static str>,
{
    want.into_iter()
        .map(|verdict| {
            let type_: &'static str = verdict.type_.into();
            let status = verdict.status.as_str();
            let since =
                have.iter().find(|c| c.type_ == type_ && c.status == status).map_or(now, |c| &c.last_transition_time);
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: verdict.reason.into().to_owned(),
                message: cut(verdict.message),
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

fn cut(message: String) -> String {
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

    fn ready(status: Truth, reason: NodeReason) -> Verdict<NodeCondition, NodeReason> {
        Verdict { type_: NodeCondition::Ready, status, reason, message: String::new() }
    }

    #[test]
    fn the_time_moves_only_when_the_status_flips() {
        let first = fold(&[], vec![ready(Truth::False, NodeReason::Starting)], None, &at(10));
        let second = fold(&first, vec![ready(Truth::False, NodeReason::TunnelNotReady)], None, &at(20));
        assert_eq!(second[0].last_transition_time, at(10), "a new reason is no flip");
        assert_eq!(second[0].reason, "TunnelNotReady");
        let third = fold(&second, vec![ready(Truth::True, NodeReason::DataPathReady)], Some(3), &at(30));
        assert_eq!(third[0].last_transition_time, at(30), "a flip");
        assert_eq!(third[0].observed_generation, Some(3));
    }

    #[test]
    fn a_condition_that_is_no_longer_wanted_goes() {
        let have = fold(&[], vec![ready(Truth::False, NodeReason::Starting)], None, &at(10));
        let want: Vec<Verdict<NodeCondition, NodeReason>> = Vec::new();
        assert!(fold(&have, want, None, &at(20)).is_empty());
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let long = "ä".repeat(MAX_MESSAGE + 5);
        let verdict = Verdict { message: long, ..ready(Truth::False, NodeReason::Starting) };
        let message = fold(&[], vec![verdict], None, &at(0)).remove(0).message;
        assert_eq!(message.chars().count(), MAX_MESSAGE);
        assert!(message.ends_with('…'));
    }
}
