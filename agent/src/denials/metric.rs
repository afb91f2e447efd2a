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
