//! A node with everything around it: fakes that execute instead of kernel and disk, and what the API server says.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use k8s_openapi::{api::core::v1::Node as NodeObject, apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use towpath_core::{
    connection::Reevaluation,
    model::{Family, Mac, NodeName},
    names::IfName,
    overlay::{IfIndex, Kernel, Link, LinkKind, LinkState, Route, RouteKey, RouteOwner, RouteTarget},
};
use towpath_crds::{agent_config::AgentConfig, condition};
use towpath_dataplane::{conntrack::fake::FakeConntrack, net::FakeNet, nft::fake::FakeNft};
use towpath_index::{Event, ObjectChange};
use towpath_local::{EndpointFile, Endpoints, NodeState, Paths, Reply, Request};

use crate::{
    cni_server::CniRequest,
    connections::{Clear, Cleared, Cuts},
    denials::Findings,
    input::Input,
    kernel::{Done, Job, Reach},
    node::{Effect, Identity, Node, Now},
    publish::{NodeWish, Report},
    settings::Settings,
};

pub(super) const UPLINK: IfIndex = IfIndex(2);

pub(super) fn settings() -> Settings {
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
pub(super) fn kernel() -> Kernel {
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
    let target = RouteTarget::Via { gateway: "192.0.2.254".parse().unwrap(), link: UPLINK };
    let key = RouteKey { destination: "0.0.0.0/0".parse().unwrap(), metric: 0 };
    kernel.routes.insert(key, Route { target, owner: RouteOwner::Other(3) });
    kernel
}

/// A node, its kernel and its hands; time stands still unless a test moves it.
pub(super) struct World {
    pub(super) node: Node,
    pub(super) reach: Reach<FakeNet, FakeNft>,
    pub(super) now: Now,
    pub(super) wishes: Vec<NodeWish>,
    pub(super) reports: Vec<Report>,
    pub(super) opened: Vec<NodeState>,
    pub(super) denied: Vec<Findings>,
    /// Whether the files can be written.
    pub(super) disk: Result<(), String>,
    pub(super) conntrack: FakeConntrack,
    pub(super) cut: u64,
    pub(super) enforced: usize,
    /// While the outside is slow: what it has done and not told yet.
    held: Option<Vec<Input>>,
    dir: tempfile::TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(kernel())
    }

    pub(super) fn with(kernel: Kernel) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let endpoints = Endpoints::new(&Paths::new(dir.path(), dir.path()));
        let reach = Reach { net: FakeNet::new(kernel), nft: FakeNft::default(), endpoints };
        let now = Now { instant: Instant::now(), time: Time(Timestamp::from_second(1).unwrap()) };
        Self::start(Mac([2, 0, 0, 0, 0, 1]), reach, FakeConntrack::default(), now, dir)
    }

    /// An agent starts on this kernel and these files. `mac` is its draw, should the node have none yet.
    fn start(
        mac: Mac,
        reach: Reach<FakeNet, FakeNft>,
        conntrack: FakeConntrack,
        now: Now,
        dir: tempfile::TempDir,
    ) -> Self {
        let identity = Identity {
            me: NodeName("n1".to_owned()),
            started_at: now.time.clone(),
            macs: BTreeMap::from([(Family::V4, mac)]),
            jitter: 500,
        };
        let pods = reach.endpoints.list().unwrap().endpoints;
        Self {
            node: Node::new(settings(), identity, pods, now.instant),
            reach,
            conntrack,
            now,
            wishes: Vec::new(),
            reports: Vec::new(),
            opened: Vec::new(),
            denied: Vec::new(),
            disk: Ok(()),
            cut: 0,
            enforced: 0,
            held: None,
            dir,
        }
    }

    /// A node that has been up since before the test.
    pub(super) fn settled() -> Self {
        let mut world = Self::new();
        world.hear(cluster());
        world
    }

    /// Another agent on the same kernel and files.
    pub(super) fn restart(self) -> Self {
        Self::start(Mac([2, 0, 0, 0, 0, 7]), self.reach, self.conntrack, self.now, self.dir)
    }

    /// Takes inputs in, and does what follows until nothing follows any more.
    pub(super) fn hear(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let mut inputs: Vec<Input> = inputs.into_iter().collect();
        for _ in 0..50 {
            let effects = self.node.step(&self.now, inputs.drain(..));
            let mut answers = Vec::new();
            for effect in effects {
                match effect {
                    Effect::Job(Job::Read(part)) => answers.push(Input::Done(self.reach.read(part))),
                    Effect::Job(Job::Apply(change)) => {
                        answers.push(Input::Done(Done::Applied(self.reach.apply(&change))));
                    }
                    Effect::Job(Job::Heard(_)) => panic!("nobody asks that here"),
                    Effect::Reply(to, reply) => drop(to.send(reply)),
                    Effect::Node(wish) => self.wishes.push(wish),
                    Effect::Report(report) => self.reports.push(*report),
                    Effect::Open(state) => {
                        self.opened.push(state);
                        answers.push(Input::Opened(self.disk.clone().map_err(anyhow::Error::msg)));
                    }
                    Effect::Review(order) => {
                        let pods = order.endpoints.values().map(|endpoint| &**endpoint);
                        let review = Reevaluation::new(&order.table, pods, &order.node, &order.touched);
                        let reviewed = self.conntrack.review(&review);
                        let took = Duration::from_millis(20);
                        let cuts = reviewed.map(|reviewed| Cuts { took, ..order.describe(&reviewed) });
                        answers.push(Input::Reviewed(cuts));
                    }
                    Effect::Clear(Clear { addresses, .. }) => {
                        let result = self.conntrack.clear(&addresses);
                        answers.push(Input::Cleared(Cleared { addresses: vec![addresses], result }));
                    }
                    Effect::Cut(count) => self.cut += count,
                    Effect::Denied(found) => self.denied.push(found),
                    Effect::Enforced(_) => self.enforced += 1,
                    Effect::Waited(_) | Effect::Applied { .. } => {}
                }
            }
            self.held.as_mut().unwrap_or(&mut inputs).extend(answers);
            if inputs.is_empty() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// From now on the outside does what it is asked for at once, but is slow to tell that it has.
    pub(super) fn hold(&mut self) {
        self.held = Some(Vec::new());
    }

    /// It tells of what it has done so far, and stays slow.
    pub(super) fn tell(&mut self) {
        let held = self.held.replace(Vec::new()).unwrap();
        self.hear(held);
    }

    /// It tells of all, and is slow no more.
    pub(super) fn release(&mut self) {
        let held = self.held.take().unwrap();
        self.hear(held);
    }

    /// Lets time go by. The node is woken when it wants to be, and at no other time.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now.instant + time;
        for _ in 0..1000 {
            let Some(at) = self.node.wake_at().filter(|at| *at <= end) else {
                self.now.instant = end;
                return;
            };
            self.now.instant = self.now.instant.max(at);
            self.hear([]);
        }
        panic!("it finds no sleep");
    }

    /// What was written to the kernel so far: transactions and changes.
    pub(super) fn writes(&self) -> usize {
        self.reach.nft.applied.len() + self.reach.net.log.len()
    }

    pub(super) fn truth(&self, condition: &'static str) -> (String, String, String) {
        let found = condition::find(&self.node.conditions, condition).unwrap();
        (found.status.clone(), found.reason.clone(), found.message.clone())
    }

    /// The plugin has made a pod's interface, and waits for the answer.
    pub(super) fn add(&mut self, file: EndpointFile) -> oneshot::Receiver<Reply> {
        self.reach.endpoints.write(&file.attachment().unwrap(), &file).unwrap();
        let (reply, answer) = oneshot::channel();
        self.hear([Input::Cni(CniRequest { request: Request::Add { endpoint: file }, reply })]);
        answer
    }

    pub(super) fn add_pod(&mut self, name: &str, address: &str) -> oneshot::Receiver<Reply> {
        self.add(endpoint(name, address))
    }

    /// The plugin takes a pod's interface away, and tells of it.
    pub(super) fn remove_pod(&mut self, name: &str, address: &str) {
        let EndpointFile { container_id, ifname, .. } = self.lose_pod(name, address);
        let (reply, _answer) = oneshot::channel();
        let request = Request::Del { container_id, ifname: ifname.to_string() };
        self.hear([Input::Cni(CniRequest { request, reply })]);
    }

    /// The same, but nobody hears of it.
    pub(super) fn lose_pod(&mut self, name: &str, address: &str) -> EndpointFile {
        let file = endpoint(name, address);
        self.reach.endpoints.remove(&file.attachment().unwrap()).unwrap();
        file
    }
}

pub(super) fn endpoint(name: &str, address: &str) -> EndpointFile {
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

pub(super) fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

pub(super) fn node_object(name: &str, number: u8, annotations: &Value) -> NodeObject {
    object(json!({
        "metadata": { "name": name, "uid": format!("uid-{name}"), "annotations": annotations },
        "spec": { "podCIDRs": [format!("10.244.{number}.0/24")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("192.0.2.{number}") }] },
    }))
}

/// What the API server says of another node, or of ours.
pub(super) fn node_event(node: NodeObject) -> Input {
    Input::Watch(Event::Node(Box::new(ObjectChange::Applied(node))))
}

pub(super) fn peer(name: &str, number: u8) -> NodeObject {
    let data = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:01:{number:02x}"}}"#);
    let annotations = json!({
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-data": data,
        "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{number}"),
    });
    node_object(name, number, &annotations)
}

pub(super) fn pod_event(name: &str) -> Input {
    labelled(name, &json!({ "app": name }))
}

/// A pod of this node with labels.
pub(super) fn labelled(name: &str, labels: &Value) -> Input {
    pod_object(&json!({
        "metadata": { "name": name, "namespace": "default", "labels": labels },
        "spec": { "nodeName": "n1", "containers": [] },
    }))
}

pub(super) fn pod_object(pod: &Value) -> Input {
    Input::Watch(Event::Pod(Box::new(ObjectChange::Applied(object(pod.clone())))))
}

pub(super) fn deny_all() -> Input {
    policy("deny", &json!({ "podSelector": {} }))
}

pub(super) fn policy(name: &str, spec: &Value) -> Input {
    let policy = object(json!({ "metadata": { "name": name, "namespace": "default" }, "spec": spec }));
    Input::Watch(Event::NetworkPolicy(Box::new(ObjectChange::Applied(policy))))
}

pub(super) fn listed<K>(event: fn(Box<ObjectChange<K>>) -> Event, objects: Vec<K>) -> Vec<Input> {
    let mut changes = vec![ObjectChange::ListStarted];
    changes.extend(objects.into_iter().map(ObjectChange::Listed));
    changes.push(ObjectChange::ListDone);
    changes.into_iter().map(|change| Input::Watch(event(Box::new(change)))).collect()
}

/// Two nodes, a namespace, no pods, no policies.
pub(super) fn cluster() -> Vec<Input> {
    let namespace = object(json!({ "metadata": { "name": "default" } }));
    let mut inputs = listed(Event::Node, vec![node_object("n1", 1, &json!({})), peer("n2", 2)]);
    inputs.extend(listed(Event::Namespace, vec![namespace]));
    inputs.extend(listed(Event::Pod, Vec::new()));
    inputs.extend(listed(Event::NetworkPolicy, Vec::new()));
    inputs
}
