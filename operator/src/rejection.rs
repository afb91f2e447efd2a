//! Parts of NetworkPolicies that cannot be enforced as written: one Event on the policy, whichever node reports it first.
//! Every agent watches every policy, so all nodes report the same.

use std::collections::BTreeSet;

use crate::{facts::ReportFacts, store::Store};

/// A NetworkPolicy with parts that cannot be enforced as written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejection {
    /// Namespace of the policy.
    pub namespace: String,
    /// Name of the policy.
    pub name: String,
    /// Which parts, and what is wrong with each.
    pub reason: String,
}

impl Rejection {
    /// A rejection of the policy `namespace/name`; `None` if `policy` has another form.
    #[must_use]
    pub fn new(policy: &str, reason: &str) -> Option<Self> {
        let (namespace, name) = policy.split_once('/')?;
        Some(Self { namespace: namespace.to_owned(), name: name.to_owned(), reason: reason.to_owned() })
    }
}

/// The rejections that any node reports.
#[must_use]
pub fn all(reports: &Store<ReportFacts>) -> BTreeSet<Rejection> {
    reports.iter().flat_map(|(_, report)| &report.rejected).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{report, table};

    #[test]
    fn equal_reports_of_many_nodes_are_one_rejection_and_each_reason_is_its_own() {
        let rejection = |policy: &str, reason: &str| Rejection::new(policy, reason).unwrap();
        let (a, b, c) =
            (rejection("shop/web", "spec.x: bad"), rejection("shop/web", "spec.y: bad"), rejection("shop/db", "bad"));
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
