//! An API server in memory, as far as the operator writes to it, and the watches that it feeds.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use axum::http::Method;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};
use towpath_crds::names;
use towpath_operator::{
    apply::Executor,
    cluster::ClusterEvent,
    facts::{Kubelet, NodeFacts, PodFacts, PodHealth, ReadyCondition, ReportFacts},
    lease::Leadership,
    metrics::Metrics,
    plan::OperatorInfo,
    reconcile::Reconciler,
    rejection::Rejection,
    serve::Health,
    store::ObjectEvent,
};

mod client;

/// The cluster's nodes.
const NODES: [&str; 2] = ["n0", "n1"];

/// The objects of the API server, the requests it received, and the operator's watches.
pub(crate) struct ApiServer {
    objects: BTreeMap<String, Value>,
    changes: UnboundedSender<ClusterEvent>,
    /// Every write request, as `METHOD resource/name`; for an Event its reason.
    pub(crate) writes: Vec<String>,
    /// How many writes to the DaemonSet are still to fail.
    pub(crate) failures: usize,
    /// Reasons of the Reconciling condition, in the order in which they were published.
    pub(crate) reconciling: Vec<String>,
    /// The Events that were written.
    pub(crate) events: Vec<Value>,
}

impl ApiServer {
    /// The object under this `resource/name`.
    pub(crate) fn object(&self, key: &str) -> Value {
        self.objects.get(key).cloned().unwrap_or(Value::Null)
    }

    /// Changes an object as another client would.
    pub(crate) fn edit(&mut self, key: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.object(key);
        change(&mut object);
        self.store(key, object);
    }

    fn store(&mut self, key: &str, object: Value) {
        let name = key.rsplit('/').next().unwrap_or_default().to_owned();
        let change = match key.split('/').next() {
            Some("networkconfigs") => ClusterEvent::Config(ObjectEvent::Applied(name, typed(&object))),
            Some("daemonsets") => ClusterEvent::DaemonSet(ObjectEvent::Applied(name, typed(&object))),
            Some("configmaps") => ClusterEvent::ConfigMap(ObjectEvent::Applied(name, typed(&object))),
            _ => return,
        };
        self.objects.insert(key.to_owned(), object);
        self.changes.unbounded_send(change).unwrap();
    }

    /// The DaemonSet changes into a form that the operator cannot decode.
    pub(crate) fn daemon_set_becomes_undecodable(&self) {
        let event = ClusterEvent::DaemonSet(ObjectEvent::Undecodable(names::AGENT.to_owned()));
        self.changes.unbounded_send(event).unwrap();
    }

    fn remove(&mut self, key: &str) {
        let name = key.rsplit('/').next().unwrap_or_default().to_owned();
        self.objects.remove(key);
        let change = match key.split('/').next() {
            Some("daemonsets") => ClusterEvent::DaemonSet(ObjectEvent::Deleted(name)),
            _ => ClusterEvent::ConfigMap(ObjectEvent::Deleted(name)),
        };
        self.changes.unbounded_send(change).unwrap();
    }

    fn answer(&mut self, method: &Method, path: &str, body: Value) -> Result<Value, u16> {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let status = parts.last() == Some(&"status");
        if status {
            parts.pop();
        }
        if path.contains("/events") {
            self.writes.push(format!("{method} event {}", body["reason"].as_str().unwrap_or_default()));
            self.events.push(body.clone());
            return Ok(body);
        }
        let key = parts[parts.len() - 2..].join("/");
        if method == Method::GET {
            let found = self.object(&key);
            return if found.is_null() { Err(404) } else { Ok(found) };
        }
        self.writes.push(format!("{method} {key}{}", if status { "/status" } else { "" }));
        if method == Method::DELETE {
            self.remove(&key);
            return Ok(json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}));
        }
        if key.starts_with("daemonsets/") {
            if self.failures > 0 {
                self.failures -= 1;
                return Err(500);
            }
            self.store(&key, with_controller(body, &self.object(&key)));
            self.agents_come_up();
        } else if key.starts_with("networkconfigs/") {
            let mut config = self.object(&key);
            if status {
                config["status"] = body["status"].clone();
                let conditions = body["status"]["conditions"].as_array().cloned().unwrap_or_default();
                let reason = conditions.iter().find(|c| c["type"] == "Reconciling").map(|c| c["reason"].clone());
                self.reconciling.extend(reason.and_then(|r| r.as_str().map(str::to_owned)));
            } else {
                config["metadata"]["finalizers"] = body["metadata"]["finalizers"].clone();
            }
            self.store(&key, config);
        } else {
            self.store(&key, body);
        }
        Ok(self.object(&key))
    }

    /// A NetworkPolicy of the namespace `shop`.
    pub(crate) fn policy(&mut self, name: &str) {
        let metadata = json!({"name": name, "namespace": "shop", "uid": format!("uid-{name}")});
        let policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata});
        self.objects.insert(format!("networkpolicies/{name}"), policy);
    }

    /// A node reports Ready, and policies with parts that cannot be enforced.
    pub(crate) fn report(&self, node: &str, rejected: &[(&str, &str)]) {
        let template = &self.object(&format!("daemonsets/{}", names::AGENT))["spec"]["template"];
        let revision = template["metadata"]["annotations"][names::ANNOTATION_REVISION].as_str().map(str::to_owned);
        let report = ReportFacts {
            revision,
            at: Some(Timestamp::now()),
            ready: Some(ReadyCondition { is_true: true, reason: "DataPathReady".to_owned(), message: String::new() }),
            peers: 1,
            rejected: rejected.iter().filter_map(|(policy, reason)| Rejection::new(policy, reason)).collect(),
            ..ReportFacts::default()
        };
        self.changes.unbounded_send(ClusterEvent::Report(ObjectEvent::Applied(node.to_owned(), report))).unwrap();
    }

    /// Every node gets a pod that is ready and reports the revision of the DaemonSet.
    fn agents_come_up(&self) {
        for node in NODES {
            let pod = PodFacts { node: Some(node.to_owned()), health: PodHealth::Ready };
            self.changes.unbounded_send(ClusterEvent::Pod(ObjectEvent::Applied(format!("agent-{node}"), pod))).unwrap();
            self.report(node, &[]);
        }
    }
}

/// What API server and DaemonSet controller add to a DaemonSet.
fn with_controller(mut object: Value, former: &Value) -> Value {
    let generation = former["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
    object["metadata"]["generation"] = json!(generation);
    object["status"] = json!({"observedGeneration": generation, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
        "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 2});
    object
}

fn typed<T: DeserializeOwned>(object: &Value) -> Box<T> {
    Box::new(serde_json::from_value(object.clone()).unwrap())
}

/// An operator that runs against the server.
pub(crate) struct Harness {
    server: Arc<Mutex<ApiServer>>,
    /// Dropped at the end; until then the operator runs.
    _channels: (watch::Sender<Leadership>, watch::Sender<bool>),
}

impl Harness {
    /// Starts an operator over two nodes and this NetworkConfig, whose first `failures` writes to the DaemonSet fail.
    /// Must run inside a `LocalSet`, with time paused.
    pub(crate) fn start(spec: &Value, leading: Leadership, failures: usize) -> Self {
        let (changes, stream) = unbounded();
        let server = ApiServer {
            objects: BTreeMap::new(),
            changes,
            writes: Vec::new(),
            failures,
            reconciling: Vec::new(),
            events: Vec::new(),
        };
        let server = Arc::new(Mutex::new(server));
        let metrics = Metrics::default();
        let reconciler = Reconciler {
            executor: Executor::new(client(&server), "op", metrics.clone()),
            operator: OperatorInfo { image: "towpath.local/towpath:0.1.0".to_owned(), version: "0.1.0".to_owned() },
            metrics,
            health: Health::default(),
        };
        let (leadership, leads) = watch::channel(leading);
        let (stop, stops) = watch::channel(false);
        tokio::task::spawn_local(async move { reconciler.run(stream, leads, stops).await });
        let harness = Self { server, _channels: (leadership, stop) };
        harness.list(spec);
        harness
    }

    /// The server.
    pub(crate) fn server(&self) -> MutexGuard<'_, ApiServer> {
        self.server.lock().unwrap()
    }

    /// Lets ten minutes pass, and returns what was written meanwhile.
    pub(crate) async fn pass(&self) -> Vec<String> {
        sleep(Duration::from_secs(600)).await;
        std::mem::take(&mut self.server().writes)
    }

    /// The first list of every watch.
    fn list(&self, spec: &Value) {
        let mut server = self.server();
        let changes = server.changes.clone();
        let send = |change| changes.unbounded_send(change).unwrap();
        send(ClusterEvent::Config(ObjectEvent::ListDone));
        send(ClusterEvent::Pod(ObjectEvent::ListDone));
        send(ClusterEvent::Report(ObjectEvent::ListDone));
        send(ClusterEvent::DaemonSet(ObjectEvent::ListDone));
        send(ClusterEvent::ConfigMap(ObjectEvent::ListDone));
        send(ClusterEvent::ServiceCidr(ObjectEvent::NotServed));
        for (index, name) in NODES.into_iter().enumerate() {
            let facts = NodeFacts {
                pod_cidrs: vec![format!("10.244.{index}.0/24").parse().unwrap()],
                addresses: Vec::new(),
                kubelet: Kubelet::Reachable,
                created: None,
            };
            send(ClusterEvent::Node(ObjectEvent::Listed(name.to_owned(), facts)));
        }
        send(ClusterEvent::Node(ObjectEvent::ListDone));
        let config = json!({"apiVersion": names::API_VERSION, "kind": "NetworkConfig",
            "metadata": {"name": "default", "uid": "u", "generation": 1, "resourceVersion": "1"}, "spec": spec});
        server.store("networkconfigs/default", config);
    }
}

fn client(server: &Arc<Mutex<ApiServer>>) -> Client {
    let server = Arc::clone(server);
    client::client(names::NAMESPACE, move |method, path, body| {
        match server.lock().unwrap().answer(method, path, body) {
            Ok(value) => (200, value),
            Err(code) => (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                "message": "out of order", "reason": "InternalError"}),
            ),
        }
    })
}
