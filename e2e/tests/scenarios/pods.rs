//! Pods of scenarios, and actions inside their network namespaces.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use towpath_e2e::cluster::{Cluster, condition};
use towpath_e2e::node::Node;
use towpath_e2e::toolchain::AGNHOST_IMAGE;
use towpath_e2e::wait::wait_for;

/// Port on which a [`server`] answers HTTP, `/clientip` and `/hostname` among its paths.
pub(crate) const HTTP: u16 = 8080;
/// Port on which a [`server`] answers HTTP too.
pub(crate) const OTHER_HTTP: u16 = 9090;
/// UDP port on which a [`server`] answers the words `clientip` and `hostname`.
pub(crate) const UDP: u16 = 8081;
/// Time for pods to run.
pub(crate) const START: Duration = Duration::from_secs(90);
/// Time for pods to end.
pub(crate) const END: Duration = Duration::from_secs(60);
/// Namespace of the pods that most scenarios share.
pub(crate) const SHARED: &str = "shared";

/// A running pod with an interface of its own.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) node: String,
    /// The first of its addresses.
    pub(crate) ip: IpAddr,
    /// One per IP family.
    pub(crate) ips: Vec<IpAddr>,
    netns: File,
}

impl Pod {
    /// Finds the pod of this object on this machine.
    fn of(cluster: &Cluster, object: &Value) -> Result<Self> {
        let text = |pointer: &str| {
            let found = object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
            found.with_context(|| format!("pod {} has no {pointer}", object["metadata"]["name"]))
        };
        let node = text("/spec/nodeName")?;
        let pid = cluster.node(&node)?.pod_pid(&text("/metadata/uid")?)?;
        let netns = format!("/proc/{pid}/ns/net");
        let all = object["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        let ips =
            all.iter().filter_map(|one| one["ip"].as_str()).map(str::parse).collect::<Result<Vec<IpAddr>, _>>()?;
        Ok(Self {
            namespace: text("/metadata/namespace")?,
            name: text("/metadata/name")?,
            ip: *ips.first().context("a pod without an address")?,
            ips,
            netns: File::open(&netns).with_context(|| format!("open {netns}"))?,
            node,
        })
    }

    /// An address of the pod.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    /// Runs `act` in the pod's network namespace, on a thread of its own.
    pub(crate) fn inside<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.netns, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", self.name))?;
                act()
            });
            inside.join().map_err(|_| anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// A command of the machine that runs in the pod's network namespace.
    pub(crate) fn command(&self, words: &[&str]) -> Result<Command> {
        let (program, arguments) = words.split_first().context("no program given")?;
        let mut command = Command::new("nsenter");
        let netns = format!("--net=/proc/{}/fd/{}", std::process::id(), self.netns.as_raw_fd());
        command.arg(netns).arg("--").arg(program).args(arguments);
        // A process group of its own: Ctrl-C ends the test, which ends the command.
        command.process_group(0);
        Ok(command)
    }

    /// Runs a command in the pod's container, as `kubectl exec` does.
    pub(crate) fn exec(&self, cluster: &Cluster, words: &[&str]) -> Result<Output> {
        let mut all = vec!["exec", "-n", &self.namespace, &self.name, "--"];
        all.extend(words);
        cluster.kubectl_raw(&all)
    }
}

/// The container of a server: two HTTP ports and a UDP port.
pub(crate) fn server() -> Value {
    let netexec = |name: &str, http: u16, udp: u16| {
        json!({
            "name": name, "image": AGNHOST_IMAGE, "imagePullPolicy": "IfNotPresent",
            "args": ["netexec", format!("--http-port={http}"), format!("--udp-port={udp}")],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": http}, "periodSeconds": 1},
        })
    };
    json!([netexec("server", HTTP, UDP), netexec("other", OTHER_HTTP, UDP + 1)])
}

/// The container of a client, which does nothing by itself.
pub(crate) fn client() -> Value {
    json!([{"name": "client", "image": AGNHOST_IMAGE, "imagePullPolicy": "IfNotPresent", "args": ["pause"]}])
}

/// A pod with the label `role`, for one node.
pub(crate) fn pod(name: &str, role: &str, node: &str, containers: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"role": role}},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "containers": containers},
    })
}

/// Creates a namespace with the label `scenario`, if need be.
pub(crate) fn namespace(cluster: &Cluster, name: &str) -> Result<()> {
    let object =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"scenario": name}}});
    cluster.apply(&object.to_string())?;
    wait_for(&format!("the ServiceAccount of {name}"), START, || {
        // No pod is admitted before.
        Ok(cluster.get(&["serviceaccount", "default", "-n", name])?.map(drop))
    })
}

/// Applies objects in a namespace.
pub(crate) fn apply(cluster: &Cluster, namespace: &str, objects: &[Value]) -> Result<()> {
    let here = |mut object: Value| {
        object["metadata"]["namespace"] = json!(namespace);
        object
    };
    let items: Vec<Value> = objects.iter().cloned().map(here).collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()).map(drop)
}

/// Creates pods and waits until they are Ready. Returns them in the same order.
pub(crate) fn start(cluster: &Cluster, namespace: &str, wanted: &[Value]) -> Result<Vec<Pod>> {
    apply(cluster, namespace, wanted)?;
    let names: Vec<&str> = wanted.iter().filter_map(|pod| pod["metadata"]["name"].as_str()).collect();
    ready(cluster, namespace, &names)
}

/// Waits until the pods of these names are Ready.
pub(crate) fn ready(cluster: &Cluster, namespace: &str, names: &[&str]) -> Result<Vec<Pod>> {
    let mut last = String::new();
    let objects = wait_for(&format!("Ready pods in {namespace}"), START, || {
        let all = cluster.list(&["pods", "-n", namespace])?;
        let find = |name: &&str| all.iter().find(|pod| pod["metadata"]["name"] == **name && is_ready(pod)).cloned();
        let found: Option<Vec<Value>> = names.iter().map(find).collect();
        last = all.iter().map(|pod| format!("{}={} ", pod["metadata"]["name"], pod["status"]["phase"])).collect();
        Ok(found)
    });
    objects.with_context(|| last)?.iter().map(|object| Pod::of(cluster, object)).collect()
}

fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == "True" && pod["metadata"]["deletionTimestamp"].is_null()
}

/// Runs `act` with a namespace of this name, which is removed afterwards with all that is in it.
pub(crate) fn with_namespace<T>(cluster: &Cluster, name: &str, act: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    let outcome = namespace(cluster, name).and_then(|()| act(name));
    cluster.kubectl(&["delete", "namespace", name, "--wait=false", "--ignore-not-found"])?;
    outcome
}

/// Waits until a namespace has no pods.
pub(crate) fn gone(cluster: &Cluster, namespace: &str) -> Result<()> {
    wait_for(&format!("the end of the pods in {namespace}"), END, || {
        Ok(cluster.list(&["pods", "-n", namespace])?.is_empty().then_some(()))
    })
}

/// Waits until no namespace is being removed, with the pods in it.
pub(crate) fn settled(cluster: &Cluster) -> Result<()> {
    wait_for("the end of every namespace that is being removed", END, || {
        let all = cluster.list(&["namespaces"])?;
        Ok(all.iter().all(|namespace| namespace["status"]["phase"] == "Active").then_some(()))
    })
}

/// A server on every node, and a client on the first: pods that scenarios share and do not change.
pub(crate) struct SharedPods {
    /// One per node, in the nodes' order.
    pub(crate) servers: Vec<Pod>,
    /// On the node of the first server.
    pub(crate) client: Pod,
}

impl SharedPods {
    /// The pods, created on the first call.
    pub(crate) fn pods(cluster: &Cluster) -> Result<Self> {
        // Nodes that a scenario adds are removed with their pods.
        let nodes: Vec<String> = cluster.nodes().iter().take(3).map(Node::name).collect();
        let mut wanted: Vec<Value> =
            nodes.iter().map(|node| pod(&format!("server-{node}"), "server", node, &server())).collect();
        let first = nodes.first().context("the cluster has no node")?;
        wanted.push(pod("client", "client", first, &client()));
        namespace(cluster, SHARED)?;
        let mut servers = start(cluster, SHARED, &wanted)?;
        let client = servers.pop().context("the client")?;
        ensure!(servers.len() == nodes.len(), "{} servers on {} nodes", servers.len(), nodes.len());
        Ok(Self { servers, client })
    }

    /// The server on another node than the client.
    pub(crate) fn far(&self) -> Result<&Pod> {
        self.servers.iter().find(|server| server.node != self.client.node).context("the cluster has one node only")
    }

    /// The server on the client's node.
    pub(crate) fn near(&self) -> Result<&Pod> {
        self.servers.iter().find(|server| server.node == self.client.node).context("no server beside the client")
    }
}
