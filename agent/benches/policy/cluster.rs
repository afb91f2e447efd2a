//! The objects and watch events of a large cluster: 10,000 pods, 250 of them on this node, and 1,000 policies.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};
use towpath_index::{Event, ObjectChange};
use towpath_node::Input;

pub(crate) const PODS: u32 = 10_000;
pub(crate) const LOCAL: u32 = 250;
pub(crate) const POLICIES: u32 = 1_000;
const NAMESPACES: u32 = 100;
/// Values of the label `app`.
const APPS: u32 = 50;

/// The distribution of pods and policies over namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cluster {
    /// Pods in all namespaces, ten policies in each.
    Spread,
    /// All pods of this node are in one namespace, and each is selected by all 1,000 policies.
    OneNamespace,
}

impl Cluster {
    /// Namespace and name of pod n. The first `LOCAL` pods are on this node.
    pub(crate) fn pod_name(self, n: u32) -> (String, String) {
        let namespace = match self {
            Self::OneNamespace if n < LOCAL => "local".to_owned(),
            Self::Spread | Self::OneNamespace => namespace(n % NAMESPACES),
        };
        (namespace, format!("pod-{n}"))
    }

    /// The events of a complete list of all kinds. The last one completes it.
    pub(crate) fn list(self) -> Vec<Input> {
        let node = json!({
            "metadata": {"name": "n1", "uid": "n1"},
            "spec": {"podCIDRs": ["10.244.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        });
        let mut namespaces: Vec<Value> = (0..NAMESPACES)
            .map(|n| json!({"metadata": {"name": namespace(n), "labels": {"team": (n % 10).to_string()}}}))
            .collect();
        namespaces.push(json!({"metadata": {"name": "local"}}));
        let mut policies: Vec<Value> = (0..POLICIES).map(|n| self.policy(n, 0)).collect();
        policies.push(self.small_policy("client"));
        let mut all = listed(Event::Node, vec![node]);
        all.extend(listed(Event::Namespace, namespaces));
        all.extend(listed(Event::Pod, (0..PODS).map(|n| self.pod(n, n % APPS)).collect()));
        all.extend(listed(Event::NetworkPolicy, policies));
        all
    }

    /// An update of the label `app` of pod n.
    pub(crate) fn relabelled(self, n: u32, app: u32) -> Input {
        applied(Event::Pod, self.pod(n, app % APPS))
    }

    /// An update of the port of policy n.
    pub(crate) fn changed_port(self, n: u32, round: u32) -> Input {
        applied(Event::NetworkPolicy, self.policy(n, round))
    }

    /// An update of the policy that selects a few pods of this node: its ingress allows the pods of this app.
    pub(crate) fn changed_peer(self, app: &str) -> Input {
        applied(Event::NetworkPolicy, self.small_policy(app))
    }

    fn pod(self, n: u32, app: u32) -> Value {
        let (namespace, name) = self.pod_name(n);
        let address = address(n).to_string();
        json!({
            "metadata": {
                "name": name, "namespace": namespace, "uid": name,
                "labels": {"app": app.to_string(), "tier": (n % 3).to_string(), "hash": n.to_string()},
            },
            "spec": {"nodeName": if n < LOCAL { "n1" } else { "n2" }, "containers": []},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
        })
    }

    fn policy(self, n: u32, round: u32) -> Value {
        let app = json!({"matchLabels": {"app": (n % APPS).to_string()}});
        let (namespace, subject, from, port) = match self {
            Self::Spread => (
                namespace(n % NAMESPACES),
                json!({"matchLabels": {"tier": (n % 3).to_string()}}),
                json!([
                    {"podSelector": {"matchLabels": {"tier": "1"}}},
                    {"namespaceSelector": {"matchLabels": {"team": (n % 10).to_string()}}, "podSelector": app},
                ]),
                8000 + n % 10,
            ),
            Self::OneNamespace => {
                ("local".to_owned(), json!({}), json!([{"namespaceSelector": {}, "podSelector": app}]), 8000 + n)
            }
        };
        let ports = json!([{"protocol": "TCP", "port": port + 10_000 * round}]);
        json!({
            "metadata": {"name": format!("policy-{n}"), "namespace": namespace},
            "spec": {"podSelector": subject, "policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": ports}]},
        })
    }

    fn small_policy(self, app: &str) -> Value {
        let (namespace, _) = self.pod_name(0);
        json!({
            "metadata": {"name": "small", "namespace": namespace},
            "spec": {
                "podSelector": {"matchLabels": {"app": "0"}},
                "policyTypes": ["Ingress"],
                "ingress": [{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}]}],
            },
        })
    }
}

/// The address of pod n.
pub(crate) fn address(n: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0af4_0002 + n))
}

fn namespace(n: u32) -> String {
    format!("namespace-{n}")
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn applied<K: serde::de::DeserializeOwned>(event: fn(Box<ObjectChange<K>>) -> Event, value: Value) -> Input {
    Input::Watch(event(Box::new(ObjectChange::Applied(object(value)))))
}

fn listed<K: serde::de::DeserializeOwned>(event: fn(Box<ObjectChange<K>>) -> Event, objects: Vec<Value>) -> Vec<Input> {
    let objects = objects.into_iter().map(|value| ObjectChange::Listed(object(value)));
    let changes = [ObjectChange::ListStarted].into_iter().chain(objects).chain([ObjectChange::ListDone]);
    changes.map(|change| Input::Watch(event(Box::new(change)))).collect()
}
