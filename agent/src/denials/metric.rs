//! Under which name packets are counted. Names are bounded in number, because each costs whoever scrapes them.

use std::collections::BTreeSet;

use prometheus_client::encoding::EncodeLabelSet;
use towpath_core::policy::ir::{Direction, PolicyId};

use super::{Cause, Denial};

/// How many policies and directions have a series of their own; with those for the others and for none there are a hundred.
const MOST: usize = 96;

/// The labels of a series.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, EncodeLabelSet)]
pub struct Series {
    /// The policy's namespace; empty where there is no policy to name.
    pub namespace: String,
    /// Its name; `other` without a namespace for all policies beyond the bound, empty where no policy is the cause.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: String,
}

/// The policies that have a series: the first ones.
#[derive(Debug, Default)]
pub(super) struct AllSeries(BTreeSet<(PolicyId, Direction)>);

impl AllSeries {
    /// Where the denial's packets count: once for each policy that its cause names.
    pub(super) fn of(&mut self, denial: &Denial) -> BTreeSet<Series> {
        let unnamed = |policy: &str| Series {
            namespace: String::new(),
            policy: policy.to_owned(),
            direction: denial.direction.to_string(),
        };
        let own = |policy: &PolicyId| Series {
            namespace: policy.namespace.clone(),
            policy: policy.name.clone(),
            direction: denial.direction.to_string(),
        };
        match &denial.cause {
            Cause::Isolated { by, more } => {
                let named = by.iter().map(|policy| (policy, self.has_own(policy, denial.direction)));
                let further = (*more > 0).then(|| unnamed("other"));
                named
                    .map(|(policy, is_own)| if is_own { own(policy) } else { unnamed("other") })
                    .chain(further)
                    .collect()
            }
            Cause::Rule { policy, .. } if self.has_own(policy, denial.direction) => [own(policy)].into(),
            Cause::Rule { .. } => [unnamed("other")].into(),
            Cause::UnknownPod | Cause::AllowedNow => [unnamed("")].into(),
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
    use towpath_dataplane::nflog::Carried;

    use super::*;
    use crate::denials::Peer;

    fn policy(name: &str) -> PolicyId {
        PolicyId { namespace: "a".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_packet_counts_once_for_each_policy_that_its_cause_names() {
        let isolated = |by: &[&str], more| Cause::Isolated { by: by.iter().map(|name| policy(name)).collect(), more };
        for (cause, expected, why) in [
            (isolated(&["p", "q"], 0), &[("a", "p"), ("a", "q")][..], "both isolate"),
            (isolated(&["p"], 1), &[("", "other"), ("a", "p")], "one more that is not named"),
            (Cause::Rule { policy: policy("p"), rule: 3 }, &[("a", "p")], "a rule's policy"),
            (Cause::UnknownPod, &[("", "")], "no policy's doing"),
            (Cause::AllowedNow, &[("", "")], "no policy's any more"),
        ] {
            let denial = Denial {
                pod: PodId { namespace: "a".to_owned(), name: "web".to_owned() },
                direction: Direction::Egress,
                peer: Peer { address: [10, 244, 0, 2].into(), pod: None },
                carried: Carried::Port(Protocol::Tcp, 80),
                cause,
            };
            let series = AllSeries::default().of(&denial);
            let names: Vec<(&str, &str)> = series.iter().map(|s| (s.namespace.as_str(), s.policy.as_str())).collect();
            assert_eq!(names, expected, "{why}");
            assert!(series.iter().all(|series| series.direction == "egress"), "{why}");
        }
    }
}
