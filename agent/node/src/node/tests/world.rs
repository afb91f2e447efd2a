//! A node with everything around it: fakes that execute instead of kernel and disk, and what the API server says.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::api::core::v1::Node as NodeObject;
use serde_json::{Value, json};
use towpath_core::{
    model::{Endpoint, Family, Mac, NodeName, PodId},
    names::IfName,
    overlay::{IfIndex, Kernel, Link, LinkKind, LinkState, Route, RouteKey, RouteOwner, RouteTarget},
};
use towpath_crds::{agent_config::AgentConfig, condition};
use towpath_index::{Event, ObjectChange};

use super::fakes::{FakeConntrack, FakeKernel};
use crate::{
    Attachment, CniNetwork, CniReply, CniRequest, Effect, FlushRequest, FlushedAddresses, Identity, Input, KernelJob,
    KernelResult, LocalPod, LogLine, Measurement, Node, NodePatch, Now, Settings, StatusUpdate, Ticket,
    denials::DenialReport,
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

/// A node, its kernel and its files; time stands still unless a test moves it.
pub(super) struct World {
    pub(super) node: Node,
    pub(super) kernel: FakeKernel,
    /// The endpoint files.
    pub(super) files: BTreeMap<Attachment, LocalPod>,
    pub(super) now: Now,
    pub(super) patches: Vec<NodePatch>,
    pub(super) updates: Vec<StatusUpdate>,
    pub(super) installed: Vec<CniNetwork>,
    pub(super) reports: Vec<DenialReport>,
    pub(super) log: Vec<LogLine>,
    /// Whether the CNI files can be written.
    pub(super) disk: Result<(), String>,
    pub(super) conntrack: FakeConntrack,
    pub(super) revoked: u64,
    /// How many changes of policy were committed.
    pub(super) policy_changes: usize,
    replies: BTreeMap<Ticket, CniReply>,
    tickets: u64,
    /// While the environment is slow: the inputs that it holds back.
    held: Option<Vec<Input>>,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(kernel())
    }

    pub(super) fn with(kernel: Kernel) -> Self {
        let now = Now { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1) };
        let (kernel, conntrack) = (FakeKernel::new(kernel), FakeConntrack::default());
        Self::start(Mac([2, 0, 0, 0, 0, 1]), kernel, conntrack, now, BTreeMap::new())
    }

    /// An agent starts on this kernel and these files. `mac` is its draw, should the node have none yet.
    fn start(
        mac: Mac,
        kernel: FakeKernel,
        conntrack: FakeConntrack,
        now: Now,
        files: BTreeMap<Attachment, LocalPod>,
    ) -> Self {
        let identity = Identity {
            me: NodeName("n1".to_owned()),
            started_at: now.wall,
            macs: BTreeMap::from([(Family::V4, mac)]),
            jitter: 500,
        };
        Self {
            node: Node::new(settings(), identity, files.values().cloned().collect(), now.monotonic),
            kernel,
            files,
            conntrack,
            now,
            patches: Vec::new(),
            updates: Vec::new(),
            installed: Vec::new(),
            reports: Vec::new(),
            log: Vec::new(),
            disk: Ok(()),
            revoked: 0,
            policy_changes: 0,
            replies: BTreeMap::new(),
            tickets: 0,
            held: None,
        }
    }

    /// A node that has been up since before the test.
    pub(super) fn settled() -> Self {
        let mut world = Self::new();
        world.feed(cluster());
        world
    }

    /// Another agent on the same kernel and files.
    pub(super) fn restart(self) -> Self {
        Self::start(Mac([2, 0, 0, 0, 0, 7]), self.kernel, self.conntrack, self.now, self.files)
    }

    /// Feeds inputs to the node, and the results of its effects, until nothing follows any more.
    pub(super) fn feed(&mut self, inputs: impl IntoIterator<Item = Input>) {
        let mut inputs: Vec<Input> = inputs.into_iter().collect();
        for _ in 0..50 {
            let effects = self.node.step(&self.now, inputs.drain(..));
            let results: Vec<Input> = effects.into_iter().filter_map(|effect| self.execute(effect)).collect();
            self.held.as_mut().unwrap_or(&mut inputs).extend(results);
            if inputs.is_empty() {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn execute(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Kernel(KernelJob::Read(part)) => {
                let pods = || self.files.values().cloned().collect();
                return Some(Input::Kernel(self.kernel.read(part, pods)));
            }
            Effect::Kernel(KernelJob::Apply(change)) => {
                return Some(Input::Kernel(KernelResult::Applied(self.kernel.apply(&change))));
            }
            Effect::Reevaluate(request) => {
                let outcome = self.conntrack.reevaluate(&request.verdicts());
                let summary = outcome.map(|outcome| request.summarize(&outcome, Duration::from_millis(20)));
                return Some(Input::Reevaluated(summary));
            }
            Effect::Flush(FlushRequest { addresses, .. }) => {
                let result = self.conntrack.flush(&addresses);
                return Some(Input::Flushed(FlushedAddresses { addresses: vec![addresses], result }));
            }
            Effect::InstallCni(network) => {
                self.installed.push(network.clone());
                return Some(Input::CniInstalled(network, self.disk.clone()));
            }
            Effect::Reply(ticket, reply) => assert_eq!(self.replies.insert(ticket, reply), None, "one reply each"),
            Effect::PatchNode(patch) => self.patches.push(patch),
            Effect::UpdateStatus(update) => self.updates.push(*update),
            Effect::ReportPackets(report) => self.reports.push(report),
            Effect::Log(line) => self.log.push(line),
            Effect::Measure(Measurement::Revoked(count)) => self.revoked += count,
            Effect::Measure(Measurement::PolicyChange(_)) => self.policy_changes += 1,
            Effect::Measure(Measurement::PodWait(_) | Measurement::Apply { .. }) => {}
        }
        None
    }

    /// From now on the environment executes effects at once, but holds their results back.
    pub(super) fn hold(&mut self) {
        self.held = Some(Vec::new());
    }

    /// It gives the results so far, and holds further ones back.
    pub(super) fn deliver(&mut self) {
        let held = self.held.replace(Vec::new()).unwrap();
        self.feed(held);
    }

    /// It gives all results, and holds back none any more.
    pub(super) fn release(&mut self) {
        let held = self.held.take().unwrap();
        self.feed(held);
    }

    /// Lets time pass. The node is woken when it asks for it, and at no other time.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now.monotonic + time;
        for _ in 0..1000 {
            let Some(at) = self.node.wake_at().filter(|at| *at <= end) else {
                self.now.monotonic = end;
                return;
            };
            self.now.monotonic = self.now.monotonic.max(at);
            self.feed([]);
        }
        panic!("it finds no sleep");
    }

    /// What was written to the kernel so far: transactions and changes.
    pub(super) fn writes(&self) -> usize {
        self.kernel.transactions.len() + self.kernel.ops.len()
    }

    pub(super) fn condition(&self, condition: &'static str) -> (String, String, String) {
        let found = condition::find(&self.node.status.conditions, condition).unwrap();
        (found.status.clone(), found.reason.clone(), found.message.clone())
    }

    /// The plugin has made a pod's interface, and sends ADD.
    pub(super) fn add(&mut self, pod: LocalPod) -> Ticket {
        self.files.insert(pod.attachment.clone(), pod.clone());
        self.request(CniRequest::Add(pod))
    }

    pub(super) fn add_pod(&mut self, name: &str, address: &str) -> Ticket {
        self.add(pod(name, address))
    }

    /// The same; gives the reply.
    pub(super) fn start_pod(&mut self, name: &str, address: &str) -> CniReply {
        let ticket = self.add_pod(name, address);
        self.reply(ticket).expect("a reply")
    }

    /// The plugin has deleted a pod's interface, and sends DEL.
    pub(super) fn remove_pod(&mut self, name: &str, address: &str) {
        let attachment = self.lose_pod(name, address);
        let ticket = self.request(CniRequest::Del(attachment));
        assert_eq!(self.reply(ticket), Some(CniReply::Ok));
    }

    /// The plugin has deleted a pod's interface, and its DEL is lost.
    pub(super) fn lose_pod(&mut self, name: &str, address: &str) -> Attachment {
        let attachment = pod(name, address).attachment;
        self.files.remove(&attachment);
        attachment
    }

    pub(super) fn request(&mut self, request: CniRequest) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.feed([Input::Cni(ticket, request)]);
        ticket
    }

    /// The reply to a request, if there is one yet.
    pub(super) fn reply(&self, ticket: Ticket) -> Option<CniReply> {
        self.replies.get(&ticket).cloned()
    }
}

pub(super) fn pod(name: &str, address: &str) -> LocalPod {
    LocalPod {
        attachment: Attachment { container_id: format!("c-{name}"), ifname: IfName::new("eth0").unwrap() },
        endpoint: Endpoint {
            pod: PodId { namespace: "default".to_owned(), name: name.to_owned() },
            interface: IfName::of_pod("default", name),
            addresses: vec![address.parse().unwrap()],
        },
        uid: None,
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
