//! RBAC as one table. No account may `bind` or `escalate`, and none reads Secrets.

use serde_json::{Value, json};
use towpath_crds::names;

use super::metadata;

/// The scope of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole cluster: a ClusterRole.
    Cluster,
    /// The namespace of operator and agents: a Role.
    Namespace,
}

/// A rule for one service account.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// Service account that gets the right.
    pub account: &'static str,
    /// Where the rule applies.
    pub scope: Scope,
    /// API group.
    pub group: &'static str,
    /// Resources and subresources.
    pub resources: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
}

const fn rule(
    account: &'static str,
    scope: Scope,
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
) -> Rule {
    Rule { account, scope, group, resources, verbs }
}

const WATCH: &[&str] = &["get", "list", "watch"];
/// Server-side apply needs `create` for objects that do not exist yet.
const APPLY: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];
const EMIT: &[&str] = &["create", "patch"];

/// Every right of operator and agents.
pub const RULES: &[Rule] = &[
    // `patch` is for the finalizer.
    rule(names::OPERATOR, Scope::Cluster, names::GROUP, &["networkconfigs"], &["get", "list", "watch", "patch"]),
    rule(names::OPERATOR, Scope::Cluster, names::GROUP, &["networkconfigs/status"], &["patch"]),
    rule(names::OPERATOR, Scope::Cluster, names::GROUP, &["networknodes"], WATCH),
    rule(names::OPERATOR, Scope::Cluster, "", &["nodes"], WATCH),
    rule(names::OPERATOR, Scope::Cluster, "networking.k8s.io", &["servicecidrs"], WATCH),
    // For the uid in an Event about the policy.
    rule(names::OPERATOR, Scope::Cluster, "networking.k8s.io", &["networkpolicies"], &["get"]),
    // Events about cluster-scoped objects are created in the namespace `default`.
    rule(names::OPERATOR, Scope::Cluster, "events.k8s.io", &["events"], EMIT),
    rule(names::OPERATOR, Scope::Namespace, "apps", &["daemonsets"], APPLY),
    rule(names::OPERATOR, Scope::Namespace, "", &["configmaps"], APPLY),
    rule(names::OPERATOR, Scope::Namespace, "", &["pods"], WATCH),
    rule(names::OPERATOR, Scope::Namespace, "coordination.k8s.io", &["leases"], &["get", "create", "update"]),
    // Annotations are written through the status; an admission policy limits the agent to its own node.
    rule(names::AGENT, Scope::Cluster, "", &["nodes", "pods", "namespaces"], WATCH),
    rule(names::AGENT, Scope::Cluster, "", &["nodes/status"], &["patch"]),
    rule(names::AGENT, Scope::Cluster, "networking.k8s.io", &["networkpolicies"], WATCH),
    rule(names::AGENT, Scope::Cluster, names::GROUP, &["networknodes"], &["get", "create", "patch", "delete"]),
    rule(names::AGENT, Scope::Cluster, names::GROUP, &["networknodes/status"], &["patch", "update"]),
    rule(names::AGENT, Scope::Cluster, "events.k8s.io", &["events"], EMIT),
];

/// The roles and bindings for [`RULES`].
pub(super) fn objects() -> Vec<Value> {
    let mut objects = Vec::new();
    for account in [names::OPERATOR, names::AGENT] {
        for scope in [Scope::Cluster, Scope::Namespace] {
            let rules: Vec<Value> = RULES
                .iter()
                .filter(|rule| rule.account == account && rule.scope == scope)
                .map(|rule| json!({ "apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs }))
                .collect();
            if !rules.is_empty() {
                objects.extend(role(account, scope, &rules));
            }
        }
    }
    objects
}

fn role(account: &str, scope: Scope, rules: &[Value]) -> [Value; 2] {
    let (kind, namespace) = match scope {
        Scope::Cluster => ("ClusterRole", None),
        Scope::Namespace => ("Role", Some(names::NAMESPACE)),
    };
    let api = "rbac.authorization.k8s.io";
    let version = format!("{api}/v1");
    [
        json!({ "apiVersion": version, "kind": kind, "metadata": metadata(account, namespace), "rules": rules }),
        json!({
            "apiVersion": version,
            "kind": format!("{kind}Binding"),
            "metadata": metadata(account, namespace),
            "roleRef": { "apiGroup": api, "kind": kind, "name": account },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": names::NAMESPACE }],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_account_grants_rights_or_reads_secrets() {
        for rule in RULES {
            for verb in rule.verbs {
                assert!(!["*", "bind", "escalate", "impersonate", "deletecollection"].contains(verb), "{rule:?}");
            }
            for resource in rule.resources {
                assert!(!["*", "secrets", "clusterroles", "roles"].contains(resource), "{rule:?}");
            }
        }
    }

    #[test]
    fn the_agent_writes_only_reports_and_events() {
        let writing = RULES.iter().filter(|r| r.account == names::AGENT && r.verbs.iter().any(|v| !WATCH.contains(v)));
        let resources: Vec<&str> = writing.flat_map(|r| r.resources.iter().copied()).collect();
        assert_eq!(resources, ["nodes/status", "networknodes", "networknodes/status", "events"]);
    }
}
