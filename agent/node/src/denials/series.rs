//! The metric series of denied packets. Their number is bounded, because each costs whoever scrapes it.

use std::collections::BTreeSet;

use towpath_core::policy::ir::{Direction, PolicyId};

use crate::explain::{Denial, DenialCause};

/// How many policies and directions have a series of their own; with those for the others and for none there are a hundred.
const MOST: usize = 96;

/// The labels of a series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DenialSeries {
    /// The policy's namespace; empty where there is no policy to name.
    pub namespace: String,
    /// The policy's name; `other` without a namespace for all policies beyond the bound, empty where no policy is the cause.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: String,
}

/// The policies that have a series of their own: the first that denied a packet.
#[derive(Debug, Default)]
pub(super) struct SeriesIndex(BTreeSet<(PolicyId, Direction)>);

impl SeriesIndex {
    /// The series in which the denial's packets count: one for each policy that its cause names.
    pub(super) fn of(&mut self, denial: &Denial) -> BTreeSet<DenialSeries> {
        let unnamed = |policy: &str| DenialSeries {
            namespace: String::new(),
            policy: policy.to_owned(),
            direction: denial.direction.to_string(),
        };
        let own = |policy: &PolicyId| DenialSeries {
            namespace: policy.namespace.clone(),
            policy: policy.name.clone(),
            direction: denial.direction.to_string(),
        };
        match &denial.cause {
            DenialCause::Isolated { by, more } => {
                let named = by.iter().map(|policy| (policy, self.has_own(policy, denial.direction)));
                let further = (*more > 0).then(|| unnamed("other"));
                named
                    .map(|(policy, is_own)| if is_own { own(policy) } else { unnamed("other") })
                    .chain(further)
                    .collect()
            }
            DenialCause::Rule { policy, .. } if self.has_own(policy, denial.direction) => [own(policy)].into(),
            DenialCause::Rule { .. } => [unnamed("other")].into(),
            DenialCause::UnknownPod | DenialCause::AllowedNow => [unnamed("")].into(),
        }
    }

    fn has_own(&mut self, policy: &PolicyId, direction: Direction) -> bool {
        let key = (policy.clone(), direction);
        self.0.contains(&key) || (self.0.len() < MOST && self.0.insert(key))
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::model::{PodId, Protocol};

    use super::*;
    use crate::explain::{PacketPeer, Payload};

    fn policy(name: &str) -> PolicyId {
        PolicyId { namespace: "a".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_packet_counts_once_for_each_policy_that_its_cause_names() {
        let isolated =
            |by: &[&str], more| DenialCause::Isolated { by: by.iter().map(|name| policy(name)).collect(), more };
        for (cause, expected, why) in [
            (isolated(&["p", "q"], 0), &[("a", "p"), ("a", "q")][..], "both isolate"),
            (isolated(&["p"], 1), &[("", "other"), ("a", "p")], "one more that is not named"),
            (DenialCause::Rule { policy: policy("p"), rule: 3 }, &[("a", "p")], "a rule's policy"),
            (DenialCause::UnknownPod, &[("", "")], "no policy's doing"),
            (DenialCause::AllowedNow, &[("", "")], "no policy's any more"),
        ] {
            let denial = Denial {
                pod: PodId { namespace: "a".to_owned(), name: "web".to_owned() },
                direction: Direction::Egress,
                peer: PacketPeer { address: [10, 244, 0, 2].into(), pod: None },
                payload: Payload::Port(Protocol::Tcp, 80),
                cause,
            };
            let series = SeriesIndex::default().of(&denial);
            let names: Vec<(&str, &str)> = series.iter().map(|s| (s.namespace.as_str(), s.policy.as_str())).collect();
            assert_eq!(names, expected, "{why}");
            assert!(series.iter().all(|series| series.direction == "egress"), "{why}");
        }
    }
}
