//! A cluster: a node with six pods and, beyond its uplink, another node with its pods and the outside. The node's table
//! is compiled from Kubernetes objects, as in the agent.
//!
//! | Namespace | Labels | Pods of this node | Pods of the other node |
//! |---|---|---|---|
//! | `shop` | team=blue | `web` (app=web, tier=front), `db` (app=db, tier=back), `bare` (no label) | |
//! | `ops` | team=red | `client` (app=client, tier=front), `opsweb` (app=web, tier=back) | `remote`, `completed`, `terminating`, `host` (hostNetwork): tier=back |
//! | `lab` | no `team` | `lab` (app=client) | |

use std::net::IpAddr;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};
use towpath_core::{
    model::{Endpoint, Family, NodeName, PodId},
    names::IfName,
    policy::{
        compile::compile,
        ir::{Snapshot, Tier},
        packet_log::DenyLog,
    },
    ruleset::Ruleset,
    table::{Masquerade, PolicyEnforcement, SourceToNodes, TableInput, table},
};
use towpath_index::{Event, Index, ObjectChange};

/// The overlay's UDP port.
pub(crate) const OVERLAY: u16 = 8472;

/// A source or destination of packets.
#[derive(Debug)]
pub(crate) struct TestEndpoint {
    /// Its name in scenarios.
    pub(crate) name: &'static str,
    /// The namespace that it is in.
    pub(crate) location: Location,
    addresses: [&'static str; 2],
}

/// The network namespace of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Location {
    /// The namespace of a local pod: its Kubernetes namespace and its name.
    Pod(&'static str, &'static str),
    /// The node's namespace.
    Node,
    /// Beyond the uplink: the other node, its pods and the outside.
    External,
}

const fn test_endpoint(name: &'static str, location: Location, v4: &'static str, v6: &'static str) -> TestEndpoint {
    TestEndpoint { name, location, addresses: [v4, v6] }
}

static ENDPOINTS: &[TestEndpoint] = &[
    test_endpoint("web", Location::Pod("shop", "web"), "10.244.1.2", "fd00:244:1::2"),
    test_endpoint("db", Location::Pod("shop", "db"), "10.244.1.3", "fd00:244:1::3"),
    test_endpoint("bare", Location::Pod("shop", "bare"), "10.244.1.4", "fd00:244:1::4"),
    test_endpoint("client", Location::Pod("ops", "client"), "10.244.1.5", "fd00:244:1::5"),
    test_endpoint("opsweb", Location::Pod("ops", "opsweb"), "10.244.1.6", "fd00:244:1::6"),
    test_endpoint("lab", Location::Pod("lab", "lab"), "10.244.1.7", "fd00:244:1::7"),
    // A spoofed source address of the pod `client`: it belongs to the other node's podCIDR.
    test_endpoint("spoofer", Location::Pod("ops", "client"), "10.244.2.9", "fd00:244:2::9"),
    test_endpoint("node", Location::Node, "172.30.0.11", "fd00:172::11"),
    // The other node, with its hostNetwork pods.
    test_endpoint("host", Location::External, "172.30.0.12", "fd00:172::12"),
    test_endpoint("remote", Location::External, "10.244.2.2", "fd00:244:2::2"),
    test_endpoint("completed", Location::External, "10.244.2.3", "fd00:244:2::3"),
    test_endpoint("terminating", Location::External, "10.244.2.4", "fd00:244:2::4"),
    test_endpoint("outside", Location::External, "198.51.100.7", "2001:db8::7"),
    test_endpoint("excepted", Location::External, "198.51.100.130", "2001:db8::8007"),
    test_endpoint("stranger", Location::External, "203.0.113.9", "2001:db8:f::9"),
    // A Service: DNAT of TCP port 80 to web's 8080 and of UDP port 53 to web's 5353.
    test_endpoint("service", Location::Pod("shop", "web"), "10.96.0.1", "fd00:96::1"),
];

/// Finds an endpoint by its name in scenarios.
pub(crate) fn endpoint(name: &str) -> &'static TestEndpoint {
    ENDPOINTS.iter().find(|test_endpoint| test_endpoint.name == name).unwrap_or_else(|| panic!("no endpoint {name}"))
}

impl TestEndpoint {
    pub(crate) fn address(&self, family: Family) -> IpAddr {
        let [v4, v6] = self.addresses;
        let text = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        text.parse().unwrap()
    }

    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        Family::ALL.map(|family| self.address(family)).to_vec()
    }

    /// The local pod that it belongs to.
    pub(crate) fn pod(&self) -> Option<PodId> {
        match self.location {
            Location::Pod(namespace, name) => Some(PodId { namespace: namespace.to_owned(), name: name.to_owned() }),
            Location::Node | Location::External => None,
        }
    }

    /// The node's interface for packets to and from it.
    pub(crate) fn interface(&self) -> IfName {
        match self.location {
            Location::Pod(namespace, name) => IfName::of_pod(namespace, name),
            Location::Node => IfName::new("lo").unwrap(),
            Location::External => IfName::new("eth0").unwrap(),
        }
    }
}

/// The node's own pods.
pub(crate) const LOCAL: [&str; 6] = ["web", "db", "bare", "client", "opsweb", "lab"];

/// The agent's view of the cluster.
pub(crate) struct Cluster {
    pub(crate) index: Index,
    /// A tier in front of NetworkPolicy.
    pub(crate) first_tier: Option<Tier>,
}

impl Cluster {
    /// A synced index with the node's endpoints and no policy.
    pub(crate) fn new() -> Self {
        let mut cluster = Self { index: index(), first_tier: None };
        LOCAL.iter().for_each(|name| cluster.add_local_endpoint(endpoint(name)));
        cluster
    }

    /// Adds the pod's interface to the index.
    pub(crate) fn add_local_endpoint(&mut self, test_endpoint: &TestEndpoint) {
        let (pod, interface) = (test_endpoint.pod().unwrap(), test_endpoint.interface());
        let _ = self.index.set_local_endpoint(Endpoint { pod, interface, addresses: test_endpoint.addresses() });
    }

    /// The snapshot that policies are compiled from.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.index.snapshot().unwrap().clone();
        snapshot.tiers.splice(..0, self.first_tier.clone());
        snapshot
    }

    /// The wanted table of the node.
    pub(crate) fn want(&self) -> Ruleset {
        let nodes = ["node", "host"].map(|name| endpoint(name).addresses());
        table(TableInput {
            endpoints: self.index.endpoints(),
            cluster_pod_cidrs: &["10.244.0.0/16".parse().unwrap(), "fd00:244::/32".parse().unwrap()],
            node_pod_cidrs: &["10.244.1.0/24".parse().unwrap(), "fd00:244:1::/64".parse().unwrap()],
            node_addresses: &nodes.concat().into_iter().collect(),
            vxlan_port: OVERLAY,
            masquerade: Masquerade::Enabled { non_masquerade_cidrs: Vec::new() },
            source_to_nodes: SourceToNodes::NodeAddress,
            policy: PolicyEnforcement::Enforce(compile(&self.snapshot(), self.index.endpoints(), DenyLog::Enabled)),
        })
    }

    /// Adds a policy to the index, by its namespace, its name and its spec in YAML.
    pub(crate) fn add_policy(&mut self, namespace: &str, name: &str, spec: &str) {
        let _ = self.index.apply(Event::NetworkPolicy(Box::new(ObjectChange::Applied(policy(namespace, name, spec)))));
    }

    /// Deletes a policy from the index.
    pub(crate) fn remove_policy(&mut self, namespace: &str, name: &str) {
        let _ = self.index.apply(Event::NetworkPolicy(Box::new(ObjectChange::Deleted(policy(namespace, name, "{}")))));
    }
}

fn policy(namespace: &str, name: &str, spec: &str) -> NetworkPolicy {
    let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": yaml(spec) });
    serde_json::from_value(object).unwrap_or_else(|error| panic!("{error}: {spec}"))
}

/// An index that has listed the cluster's objects.
fn index() -> Index {
    let mut index = Index::new(NodeName("n1".to_owned()));
    let of = |value: Value| serde_json::from_value(value).unwrap();
    let events = [
        Event::Node(Box::new(ObjectChange::ListStarted)),
        Event::Node(Box::new(ObjectChange::ListDone)),
        Event::Namespace(Box::new(ObjectChange::ListStarted)),
        Event::Namespace(Box::new(ObjectChange::Listed(of(namespace("shop", "blue"))))),
        Event::Namespace(Box::new(ObjectChange::Listed(of(namespace("ops", "red"))))),
        Event::Namespace(Box::new(ObjectChange::Listed(of(json!({ "metadata": { "name": "lab" } }))))),
        Event::Namespace(Box::new(ObjectChange::ListDone)),
        Event::NetworkPolicy(Box::new(ObjectChange::ListStarted)),
        Event::NetworkPolicy(Box::new(ObjectChange::ListDone)),
        Event::Pod(Box::new(ObjectChange::ListStarted)),
    ];
    events.into_iter().for_each(|event| _ = index.apply(event));
    for pod in pods() {
        let _ = index.apply(Event::Pod(Box::new(ObjectChange::Listed(serde_json::from_value(pod).unwrap()))));
    }
    let _ = index.apply(Event::Pod(Box::new(ObjectChange::ListDone)));
    assert!(index.synced());
    index
}

pub(crate) fn namespace(name: &str, team: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "team": team, "env": "prod" } } })
}

/// The Pod objects of the cluster.
pub(crate) fn pods() -> Vec<Value> {
    const HTTP: &str = "[{name: http, containerPort: 80}]";
    let mut pods = vec![
        pod(
            ["shop", "web"],
            "{app: web, tier: front}",
            "[{name: http, containerPort: 8080}, {name: dns, containerPort: 5353, protocol: UDP},
              {name: signal, containerPort: 3868, protocol: SCTP}]",
        ),
        pod(
            ["shop", "db"],
            "{app: db, tier: back}",
            "[{name: http, containerPort: 8081}, {name: dns, containerPort: 5301, protocol: UDP}]",
        ),
        pod(["shop", "bare"], "{}", "[]"),
        pod(["ops", "client"], "{app: client, tier: front}", "[{name: http, containerPort: 8082}]"),
        pod(["ops", "opsweb"], "{app: web, tier: back}", HTTP),
        pod(["lab", "lab"], "{app: client}", "[]"),
        pod(["ops", "remote"], "{app: remote, tier: back}", "[{name: http, containerPort: 8083}]"),
        pod(["ops", "completed"], "{app: completed, tier: back}", HTTP),
        pod(["ops", "terminating"], "{app: terminating, tier: back}", "[]"),
        pod(["ops", "host"], "{app: host, tier: back}", HTTP),
    ];
    pods[0]["spec"]["initContainers"] = yaml("[{name: i, ports: [{name: setup, containerPort: 9000}]}]");
    pods[7]["status"]["phase"] = json!("Succeeded");
    pods[8]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pods[9]["spec"]["hostNetwork"] = json!(true);
    pods
}

fn pod([namespace, name]: [&str; 2], labels: &str, ports: &str) -> Value {
    let addresses: Vec<Value> = endpoint(name).addresses().iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
    json!({
        "metadata": { "namespace": namespace, "name": name, "labels": yaml(labels) },
        "spec": { "containers": [{ "name": "c", "ports": yaml(ports) }] },
        "status": { "phase": "Running", "podIPs": addresses },
    })
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
