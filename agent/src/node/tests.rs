//! Histories of a node, replayed on fakes that execute: no kernel, no API server, no clock.

mod denied;
mod failures;

use std::{net::IpAddr, path::PathBuf};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use towpath_core::{
    connection::{Connection, Review},
    model::PodId,
    names::IfName,
    overlay::{IfIndex, Link, LinkKind, LinkState, Owner, Route, RouteKey, Target},
};
use towpath_crds::{agent_config::AgentConfig, condition};
use towpath_dataplane::{
    conntrack::fake::{FakeConntrack, FakeStanding},
    local::{Endpoints, NodeState, Paths},
    net::FakeNet,
    nft::fake::FakeNft,
};
use towpath_index::{Change as IndexChange, Event};

use super::*;
use crate::{
    connections::{Clear, Cleared, Cuts},
    kernel::Reach,
    publish::{NodeWish, Report},
};

const UPLINK: IfIndex = IfIndex(2);

fn settings() -> Settings {
    let config: AgentConfig = serde_json::from_value(json!({
        "podCIDRs": ["10.244.0.0/16"],
        "backend": { "vni": 1, "port": 8472, "directRouting": "Disabled" },
        "masquerade": { "mode": "Enabled" },
        "policy": { "mode": "Enforce" },
        "logLevel": "Info",
    }))
    .unwrap();
    Settings::new(&config).unwrap()
}

/// A kernel with an uplink and a default route through it.
fn kernel() -> Kernel {
    let mut kernel = Kernel::default();
    let link = Link {
        name: IfName::new("eth0").unwrap(),
        mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        mtu: 1500,
        state: LinkState::Up,
        kind: LinkKind::Other("veth".to_owned()),
    };
    kernel.links.insert(UPLINK, link);
    kernel.addresses.insert(UPLINK, vec!["192.0.2.1/24".parse().unwrap()]);
    let target = Target::Via { gateway: "192.0.2.254".parse().unwrap(), link: UPLINK };
    let key = RouteKey { destination: "0.0.0.0/0".parse().unwrap(), metric: 0 };
    kernel.routes.insert(key, Route { target, owner: Owner::Other(3) });
    kernel
}

/// A node, its kernel and its hands; time stands still unless a test moves it.
struct World {
    node: Node,
    reach: Reach<FakeNet, FakeNft>,
    now: Now,
    wishes: Vec<NodeWish>,
    reports: Vec<Report>,
    opened: Vec<NodeState>,
    denied: Vec<Findings>,
    /// Whether the files can be written.
    disk: Result<(), String>,
    conntrack: FakeConntrack,
    cut: u64,
    enforced: usize,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::with(kernel())
    }

    fn with(kernel: Kernel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let now = Now { instant: Instant::now(), time: Time(Timestamp::from_second(1).unwrap()) };
        let identity = Identity {
            me: NodeName("n1".to_owned()),
            started_at: now.time.clone(),
            macs: BTreeMap::from([(Family::V4, Mac([2, 0, 0, 0, 0, 1]))]),
            jitter: 500,
        };
        let endpoints = Endpoints::new(&Paths::new(dir.path(), dir.path()));
        let pods = endpoints.list().unwrap().endpoints;
        let reach = Reach { net: FakeNet::new(kernel), nft: FakeNft::default(), endpoints };
        let node = Node::new(settings(), identity, pods, now.instant);
        Self {
            node,
            reach,
            now,
            wishes: Vec::new(),
            reports: Vec::new(),
            opened: Vec::new(),
            denied: Vec::new(),
            disk: Ok(()),
            conntrack: FakeConntrack::default(),
            cut: 0,
            enforced: 0,
            _dir: dir,
        }
    }

    /// A node that has been up since before the test.
    fn settled() -> Self {
        let mut world = Self::new();
        world.hear(cluster());
        world
    }

    /// Another agent on the same kernel and files.
    fn restart(self) -> Self {
        let Self { reach, now, _dir, node, conntrack, .. } = self;
        let identity = Identity { macs: BTreeMap::from([(Family::V4, Mac([2, 0, 0, 0, 0, 7]))]), ..node.identity };
        let pods = reach.endpoints.list().unwrap().endpoints;
        let node = Node::new(settings(), identity, pods, now.instant);
        Self {
            node,
            reach,
            now,
            wishes: Vec::new(),
            reports: Vec::new(),
            opened: Vec::new(),
            denied: Vec::new(),
            disk: Ok(()),
            conntrack,
            cut: 0,
            enforced: 0,
            _dir,
        }
    }

    /// Takes inputs in, and does what follows until nothing follows any more.
    fn hear(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let mut inputs: Vec<Input> = inputs.into_iter().collect();
        for _ in 0..50 {
            let effects = self.node.step(&self.now, inputs.drain(..));
            for effect in effects {
                match effect {
                    Effect::Job(Job::Read(part)) => inputs.push(Input::Done(self.reach.read(part))),
                    Effect::Job(Job::Apply(change)) => {
                        inputs.push(Input::Done(Done::Applied(self.reach.apply(&change))));
                    }
                    Effect::Job(Job::Heard(_)) => panic!("nobody asks that here"),
                    Effect::Reply(to, reply) => drop(to.send(reply)),
                    Effect::Node(wish) => self.wishes.push(wish),
                    Effect::Report(report) => self.reports.push(*report),
                    Effect::Open(state) => {
                        self.opened.push(state);
                        inputs.push(Input::Opened(self.disk.clone().map_err(anyhow::Error::msg)));
                    }
                    Effect::Review(order) => {
                        let pods = order.endpoints.values().map(|endpoint| &**endpoint);
                        let reviewed = self.conntrack.review(&Review::new(&order.table, pods, &order.node));
                        let took = Duration::from_millis(20);
                        let cuts = reviewed.map(|reviewed| Cuts { took, ..order.describe(&reviewed) });
                        inputs.push(Input::Reviewed(cuts));
                    }
                    Effect::Clear(Clear { addresses, .. }) => {
                        let result = self.conntrack.clear(&addresses);
                        inputs.push(Input::Cleared(Cleared { addresses: vec![addresses], result }));
                    }
                    Effect::Cut(count) => self.cut += count,
                    Effect::Denied(found) => self.denied.push(found),
                    Effect::Enforced(_) => self.enforced += 1,
                    Effect::Waited(_) | Effect::Applied { .. } => {}
                }
            }
            if inputs.is_empty() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant += time;
        self.hear([]);
    }

    /// What was written to the kernel so far: transactions and changes.
    fn writes(&self) -> usize {
        self.reach.nft.applied.len() + self.reach.net.log.len()
    }

    fn truth(&self, condition: &'static str) -> (String, String, String) {
        let found = condition::find(&self.node.conditions, condition).unwrap();
        (found.status.clone(), found.reason.clone(), found.message.clone())
    }

    fn add_pod(&mut self, name: &str, address: &str) -> oneshot::Receiver<Reply> {
        let file = endpoint(name, address);
        self.reach.endpoints.write(&file.attachment().unwrap(), &file).unwrap();
        let (reply, answer) = oneshot::channel();
        self.hear([Input::Cni(CniRequest { request: Request::Add { endpoint: file }, reply })]);
        answer
    }
}

fn endpoint(name: &str, address: &str) -> EndpointFile {
    EndpointFile {
        container_id: format!("c-{name}"),
        ifname: IfName::new("eth0").unwrap(),
        netns: PathBuf::from("/run/netns/x"),
        network: "k8s-pod-network".to_owned(),
        namespace: "default".to_owned(),
        pod: name.to_owned(),
        pod_uid: None,
        host_interface: IfName::of_pod("default", name),
        mtu: 1450,
        addresses: vec![address.parse().unwrap()],
    }
}

fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn node_object(name: &str, number: u8, annotations: &Value) -> k8s_openapi::api::core::v1::Node {
    object(json!({
        "metadata": { "name": name, "uid": format!("uid-{name}"), "annotations": annotations },
        "spec": { "podCIDRs": [format!("10.244.{number}.0/24")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.0.2.{number}") }] },
    }))
}

fn peer(name: &str, number: u8) -> k8s_openapi::api::core::v1::Node {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:01:{number:02x}"}}"#);
    let annotations = json!({
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": data,
        "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{number}"),
    });
    node_object(name, number, &annotations)
}

fn pod_event(name: &str) -> Input {
    let pod = object(
        json!({ "metadata": { "name": name, "namespace": "default", "labels": { "app": name } }, "spec": { "nodeName": "n1", "containers": [] } }),
    );
    Input::Watch(Event::Pod(Box::new(IndexChange::Applied(pod))))
}

fn deny_all() -> Input {
    let policy =
        object(json!({ "metadata": { "name": "deny", "namespace": "default" }, "spec": { "podSelector": {} } }));
    Input::Watch(Event::NetworkPolicy(Box::new(IndexChange::Applied(policy))))
}

fn listed<K>(event: fn(Box<IndexChange<K>>) -> Event, objects: Vec<K>) -> Vec<Input> {
    let mut changes = vec![IndexChange::ListStarted];
    changes.extend(objects.into_iter().map(IndexChange::Listed));
    changes.push(IndexChange::ListDone);
    changes.into_iter().map(|change| Input::Watch(event(Box::new(change)))).collect()
}

/// Two nodes, a namespace, no pods, no policies.
fn cluster() -> Vec<Input> {
    let namespace = object(json!({ "metadata": { "name": "default" } }));
    let mut inputs = listed(Event::Node, vec![node_object("n1", 1, &json!({})), peer("n2", 2)]);
    inputs.extend(listed(Event::Namespace, vec![namespace]));
    inputs.extend(listed(Event::Pod, Vec::new()));
    inputs.extend(listed(Event::NetworkPolicy, Vec::new()));
    inputs
}

mod connections;

#[test]
fn nothing_is_read_or_written_before_every_kind_is_listed() {
    let mut world = World::new();
    let mut inputs = cluster();
    let last = inputs.pop().unwrap();
    world.hear(inputs);
    assert_eq!((world.writes(), world.reports.len()), (0, 0));
    world.hear([last]);
    assert!(world.writes() > 0);
}

#[test]
fn a_fresh_node_programs_its_peer_opens_and_reports_ready() {
    let world = World::settled();
    assert_eq!(world.reach.net.kernel.neighbours.len(), 1, "the peer's VTEP");
    assert_eq!(world.reach.net.kernel.fdb.len(), 1);
    assert!(world.reach.nft.table.read_back().is_some());
    let state = NodeState { pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()], mtu: 1450 };
    assert_eq!(world.opened, vec![state], "once");
    assert_eq!(world.truth("Ready").0, "True");
    let tunnel = &world.reports.last().unwrap().status.tunnels[0];
    assert_eq!((tunnel.peers_expected, tunnel.peers_programmed, tunnel.mtu), (1, 1, 1450));
    let wish = world.wishes.last().unwrap();
    let data = wish.annotations["flannel.alpha.coreos.com/backend-data"].as_deref();
    assert_eq!(data, Some(r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#));
    assert!(!wish.network_unavailable.as_ref().unwrap().unavailable);
}

#[test]
fn a_restart_writes_nothing_and_keeps_the_macs() {
    let world = World::settled();
    let before = world.writes();
    let mut world = world.restart();
    world.hear(cluster());
    assert_eq!(world.writes(), before, "all was as planned");
    assert_eq!(world.truth("Ready").0, "True");
    assert_eq!(world.reports.last().unwrap().status.tunnels[0].mac, "02:00:00:00:00:01", "not the new draw");
}

#[test]
fn a_second_look_with_nothing_changed_writes_nothing() {
    let mut world = World::settled();
    let before = world.writes();
    world.pass(Duration::from_secs(3600));
    assert_eq!((world.writes(), world.node.drift.repairs), (before, 0));
}

#[test]
fn one_more_peer_costs_three_writes_and_one_that_leaves_goes() {
    let mut world = World::settled();
    let before = world.reach.net.log.len();
    world.hear([Input::Watch(Event::Node(Box::new(IndexChange::Applied(peer("n3", 3)))))]);
    assert_eq!(world.reach.net.log.len() - before, 3, "neighbour, forwarding entry, route");
    world.hear([Input::Watch(Event::Node(Box::new(IndexChange::Deleted(peer("n3", 3)))))]);
    assert_eq!((world.reach.net.kernel.fdb.len(), world.reach.net.kernel.neighbours.len()), (1, 1));
    assert_eq!(world.node.drift.repairs, 0, "what the cluster does is no drift");
}

#[test]
fn what_somebody_deletes_comes_back_and_is_counted() {
    let mut world = World::settled();
    world.reach.net.kernel.fdb.clear();
    world.hear([Input::Notice(Notice::Net(vec![overlay::Notice::Overrun]))]);
    assert!(world.reach.net.kernel.fdb.is_empty(), "hints are gathered first");
    world.pass(GATHER);
    assert_eq!((world.reach.net.kernel.fdb.len(), world.node.drift.repairs), (1, 1));

    world.reach.nft.table = ruleset::fake::FakeTable::default();
    world.hear([Input::Notice(Notice::Table)]);
    assert!(world.reach.nft.table.read_back().is_some(), "at once");
    assert!(world.node.drift.repairs > 1);
    assert!(world.node.drift.last.is_some());
}

#[test]
fn a_pod_starts_only_when_its_rules_are_in_force() {
    let mut world = World::settled();
    world.hear([deny_all()]);
    let mut answer = world.add_pod("a", "10.244.1.2");
    assert!(answer.try_recv().is_err(), "the API server has not told of the pod");
    world.hear([pod_event("a")]);
    assert_eq!(answer.try_recv().unwrap(), Reply::Ok);
    let part = world.node.plan.as_ref().unwrap().table.installed();
    assert_eq!(world.reach.nft.table.read_back(), Some(part), "the rules stand when the answer comes");
}

#[test]
fn a_pod_that_nobody_tells_of_is_put_off_and_leaves_nothing() {
    let mut world = World::settled();
    let table = world.reach.nft.table.read_back();
    let mut answer = world.add_pod("a", "10.244.1.2");
    world.pass(Duration::from_secs(8));
    let Reply::Error { code, details, .. } = answer.try_recv().unwrap() else { panic!("not put off") };
    assert_eq!(code, 11);
    assert!(details.contains("not heard of the pod"), "{details}");
    assert_eq!(world.reach.nft.table.read_back(), table);
}

#[test]
fn a_change_of_policy_is_timed_when_it_comes_into_force_and_not_if_it_changes_nothing() {
    let mut world = World::settled();
    let before = world.enforced;
    world.hear([pod_event("elsewhere")]);
    assert_eq!(world.enforced, before, "no rule looks at it");
    world.hear([pod_event("a")]);
    assert_eq!(world.add_pod("a", "10.244.1.2").try_recv().unwrap(), Reply::Ok);
    assert_eq!(world.enforced, before + 1);
    world.reach.nft.refuse = 1;
    world.hear([pod_event("b")]);
    assert!(matches!(world.add_pod("b", "10.244.1.3").try_recv().unwrap(), Reply::Error { .. }));
    assert_eq!(world.enforced, before + 1, "refused is not in force");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.enforced, before + 2);
}

#[test]
fn refused_rules_put_the_pod_off_and_are_tried_again() {
    let mut world = World::settled();
    world.hear([pod_event("a")]);
    world.reach.nft.refuse = 1;
    let mut answer = world.add_pod("a", "10.244.1.2");
    assert!(matches!(answer.try_recv().unwrap(), Reply::Error { code: 11, .. }));
    assert_eq!(world.node.not_ready().map(|why| why.contains("by order of the test")), Some(true));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.node.not_ready(), None, "healed");
}

#[test]
fn a_deleted_pod_goes_at_once_and_a_missed_deletion_at_the_next_look() {
    let mut world = World::settled();
    world.hear([pod_event("a"), pod_event("b")]);
    for (name, address) in [("a", "10.244.1.2"), ("b", "10.244.1.3")] {
        assert_eq!(world.add_pod(name, address).try_recv().unwrap(), Reply::Ok);
    }
    let (reply, _answer) = oneshot::channel();
    let request = Request::Del { container_id: "c-a".to_owned(), ifname: "eth0".to_owned() };
    world.reach.endpoints.remove(&endpoint("a", "10.244.1.2").attachment().unwrap()).unwrap();
    world.hear([Input::Cni(CniRequest { request, reply })]);
    assert_eq!(world.node.index.endpoints().len(), 1);

    world.reach.endpoints.remove(&endpoint("b", "10.244.1.3").attachment().unwrap()).unwrap();
    world.hear([Input::Notice(Notice::Net(vec![overlay::Notice::Overrun]))]);
    world.pass(GATHER);
    assert_eq!(world.node.index.endpoints().len(), 0);
}

#[test]
fn the_next_container_of_a_pod_keeps_the_rules_when_the_last_one_goes() {
    let mut world = World::settled();
    world.hear([pod_event("a")]);
    world.add_pod("a", "10.244.1.2");
    let second = EndpointFile { container_id: "second".to_owned(), ..endpoint("a", "10.244.1.9") };
    world.reach.endpoints.write(&second.attachment().unwrap(), &second).unwrap();
    let (reply, _second) = oneshot::channel();
    world.hear([Input::Cni(CniRequest { request: Request::Add { endpoint: second }, reply })]);
    let (reply, _gone) = oneshot::channel();
    let request = Request::Del { container_id: "c-a".to_owned(), ifname: "eth0".to_owned() };
    world.hear([Input::Cni(CniRequest { request, reply })]);
    let endpoint = &world.node.index.endpoints()[&IfName::of_pod("default", "a")];
    assert_eq!(endpoint.addresses, vec!["10.244.1.9".parse::<IpAddr>().unwrap()]);
    assert_eq!(endpoint.pod, PodId { namespace: "default".to_owned(), name: "a".to_owned() });
}

#[test]
fn a_peer_with_damaged_data_is_named_and_the_others_work() {
    let mut world = World::settled();
    let mut bad = peer("n3", 3);
    let annotations = bad.metadata.annotations.as_mut().unwrap();
    annotations.insert("flannel.alpha.coreos.com/backend-data".to_owned(), "{".to_owned());
    world.hear([Input::Watch(Event::Node(Box::new(IndexChange::Applied(bad))))]);
    let (status, reason, message) = world.truth("TunnelReady");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InvalidPeer"));
    assert!(message.contains("n3"), "{message}");
    let unavailable = world.wishes.last().unwrap().network_unavailable.as_ref().unwrap().unavailable;
    assert!(!unavailable, "another's mistake does not close this node");
    world.hear([Input::Watch(Event::Node(Box::new(IndexChange::Applied(peer("n3", 3)))))]);
    assert_eq!(world.truth("TunnelReady").0, "True");
}
