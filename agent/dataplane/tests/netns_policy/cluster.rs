//! A cluster: a node with six pods, and behind its uplink everybody else: another node with its pods, and the outside.
//! What holds on the node is decided from Kubernetes objects, all the way that the agent goes.
//!
//! | Namespace | Labels | Pods of this node | Pods of the other node |
//! |---|---|---|---|
//! | `shop` | team=blue | `web` (app=web, tier=front), `db` (app=db, tier=back), `bare` (no label) | |
//! | `ops` | team=red | `client` (app=client, tier=front), `opsweb` (app=web, tier=back) | `far`, `done` (completed), `leaving` (terminating), `host` (hostNetwork): tier=back |
//! | `lab` | none of the kind | `lab` (app=client) | |

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

/// Somebody with an address.
#[derive(Debug)]
pub(crate) struct Party {
    /// What scenarios call it.
    pub(crate) name: &'static str,
    /// Where it is.
    pub(crate) place: Place,
    addresses: [&'static str; 2],
}

/// Where somebody is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the network namespace of this pod of the node, given with its Kubernetes namespace.
    Pod(&'static str, &'static str),
    /// In the node's own.
    Node,
    /// Behind the uplink: the other node, its pods, and the outside.
    Behind,
}

const fn party(name: &'static str, place: Place, v4: &'static str, v6: &'static str) -> Party {
    Party { name, place, addresses: [v4, v6] }
}

static PARTIES: &[Party] = &[
    party("web", Place::Pod("shop", "web"), "10.244.1.2", "fd00:244:1::2"),
    party("db", Place::Pod("shop", "db"), "10.244.1.3", "fd00:244:1::3"),
    party("bare", Place::Pod("shop", "bare"), "10.244.1.4", "fd00:244:1::4"),
    party("client", Place::Pod("ops", "client"), "10.244.1.5", "fd00:244:1::5"),
    party("opsweb", Place::Pod("ops", "opsweb"), "10.244.1.6", "fd00:244:1::6"),
    party("lab", Place::Pod("lab", "lab"), "10.244.1.7", "fd00:244:1::7"),
    // An address that the pod `client` has taken by itself: that of a pod of the other node.
    party("forger", Place::Pod("ops", "client"), "10.244.2.9", "fd00:244:2::9"),
    party("node", Place::Node, "172.30.0.11", "fd00:172::11"),
    // The other node, and so its pods with hostNetwork.
    party("host", Place::Behind, "172.30.0.12", "fd00:172::12"),
    party("far", Place::Behind, "10.244.2.2", "fd00:244:2::2"),
    party("done", Place::Behind, "10.244.2.3", "fd00:244:2::3"),
    party("leaving", Place::Behind, "10.244.2.4", "fd00:244:2::4"),
    party("outside", Place::Behind, "198.51.100.7", "2001:db8::7"),
    party("excepted", Place::Behind, "198.51.100.130", "2001:db8::8007"),
    party("stranger", Place::Behind, "203.0.113.9", "2001:db8:f::9"),
    // A Service's: its TCP port 80 and UDP port 53 are translated to web's 8080 and 5353.
    party("service", Place::Pod("shop", "web"), "10.96.0.1", "fd00:96::1"),
];

/// Finds somebody by name.
pub(crate) fn who(name: &str) -> &'static Party {
    PARTIES.iter().find(|party| party.name == name).unwrap_or_else(|| panic!("nobody is called {name}"))
}

impl Party {
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

    /// The pod of this node that it is.
    pub(crate) fn pod(&self) -> Option<PodId> {
        match self.place {
            Place::Pod(namespace, name) => Some(PodId { namespace: namespace.to_owned(), name: name.to_owned() }),
            Place::Node | Place::Behind => None,
        }
    }

    /// The node's interface towards it.
    pub(crate) fn interface(&self) -> IfName {
        match self.place {
            Place::Pod(namespace, name) => IfName::of_pod(namespace, name),
            Place::Node => IfName::new("lo").unwrap(),
            Place::Behind => IfName::new("eth0").unwrap(),
        }
    }
}

/// The node's own pods.
pub(crate) const LOCAL: [&str; 6] = ["web", "db", "bare", "client", "opsweb", "lab"];

/// What the agent of the node knows.
pub(crate) struct Cluster {
    pub(crate) index: Index,
    /// What a packet meets before the policies of Kubernetes.
    pub(crate) first_tier: Option<Tier>,
}

impl Cluster {
    /// Everything has been listed, the node's pods have their interfaces, and there is no policy.
    pub(crate) fn new() -> Self {
        let mut cluster = Self { index: index(), first_tier: None };
        LOCAL.iter().for_each(|name| cluster.know(who(name)));
        cluster
    }

    /// Adds the pod's interface to the index.
    pub(crate) fn know(&mut self, party: &Party) {
        let (pod, interface) = (party.pod().unwrap(), party.interface());
        let _ = self.index.set_local_endpoint(Endpoint { pod, interface, addresses: party.addresses() });
    }

    /// The cluster as policy sees it.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.index.snapshot().unwrap().clone();
        snapshot.tiers.splice(..0, self.first_tier.clone());
        snapshot
    }

    /// The table that the node should have.
    pub(crate) fn want(&self) -> Ruleset {
        let nodes = ["node", "host"].map(|name| who(name).addresses());
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

/// An index that has listed the cluster.
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

/// The cluster's pods, as the API server has them.
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
        pod(["ops", "far"], "{app: far, tier: back}", "[{name: http, containerPort: 8083}]"),
        pod(["ops", "done"], "{app: done, tier: back}", HTTP),
        pod(["ops", "leaving"], "{app: leaving, tier: back}", "[]"),
        pod(["ops", "host"], "{app: host, tier: back}", HTTP),
    ];
    pods[0]["spec"]["initContainers"] = yaml("[{name: i, ports: [{name: setup, containerPort: 9000}]}]");
    pods[7]["status"]["phase"] = json!("Succeeded");
    pods[8]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pods[9]["spec"]["hostNetwork"] = json!(true);
    pods
}

fn pod([namespace, name]: [&str; 2], labels: &str, ports: &str) -> Value {
    let addresses: Vec<Value> = who(name).addresses().iter().map(|ip| json!({ "ip": ip.to_string() })).collect();
    json!({
        "metadata": { "namespace": namespace, "name": name, "labels": yaml(labels) },
        "spec": { "containers": [{ "name": "c", "ports": yaml(ports) }] },
        "status": { "phase": "Running", "podIPs": addresses },
    })
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}
