//! Parts of policies that no node can enforce as they are written: told once on the policy itself, whichever node said so
//! first. Every agent watches every policy, so all nodes say the same.

use std::collections::BTreeSet;

use crate::{facts::ReportFacts, store::Store};

/// What the agents say of one policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejection {
    /// The policy's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Which part, and what is wrong with it.
    pub reason: String,
}

impl Rejection {
    /// `None` if the policy is not called `namespace/name`.
    #[must_use]
    pub fn new(policy: &str, reason: &str) -> Option<Self> {
        let (namespace, name) = policy.split_once('/')?;
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned(), reason: reason.to_owned() })
    }
}

/// Everything that any node says.
#[must_use]
pub fn all(reports: &Store<ReportFacts>) -> BTreeSet<Rejection> {
    reports.iter().flat_map(|(_, report)| &report.rejected).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{report, table};

    #[test]
    fn what_many_nodes_say_is_one_thing_and_each_reason_is_another() {
        let said = |policy: &str, reason: &str| Rejection::new(policy, reason).unwrap();
        let (a, b, c) = (said("shop/web", "spec.x: bad"), said("shop/web", "spec.y: bad"), said("shop/db", "bad"));
        let node = |rejected: &[&Rejection]| ReportFacts {
            rejected: rejected.iter().copied().cloned().collect(),
            ..report("r")
        };
        let reports = [("n0", node(&[&a, &c])), ("n1", node(&[&a])), ("n2", node(&[&b])), ("n3", node(&[]))];
        let reports = table(reports.map(|(name, report)| (name.to_owned(), report)));
        assert_eq!(all(&reports), BTreeSet::from([a, b, c]));
    }

    #[test]
    fn a_policy_is_named_with_its_namespace() {
        let rejection = Rejection::new("shop/web", "r").unwrap();
        assert_eq!((rejection.namespace.as_str(), rejection.name.as_str()), ("shop", "web"));
        assert_eq!(Rejection::new("web", "r"), None);
    }
}
