//! The clusters of the bench. Each is removed when its value is dropped, also when a measurement fails.

use std::ops::Deref;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use towpath_e2e::cluster::{self, Cluster, ClusterName, IpFamily, Spec, condition};
use towpath_e2e::image::Release;
use towpath_e2e::progress::Progress;
use towpath_e2e::site::Site;
use towpath_e2e::toolchain::Tools;
use towpath_e2e::wait::wait_for;
use towpath_e2e::{deploy, image};

/// Namespace of everything that the bench starts in a cluster.
pub(crate) const NAMESPACE: &str = "bench";
/// The NetworkConfig that is measured, below the checkout's top folder.
pub(crate) const CONFIG: &str = "manifests/samples/default.yaml";
/// Time for pods to start or to go.
const PODS_BOUND: Duration = Duration::from_secs(180);

/// Tools and image that every cluster of the bench is made with.
pub(crate) struct Setup {
    pub(crate) site: Site,
    pub(crate) progress: Progress,
    tools: Tools,
    release: Release,
}

/// A cluster of the bench.
pub(crate) struct BenchCluster {
    cluster: Cluster,
    /// How long it took to start it.
    pub(crate) up: Duration,
}

impl Setup {
    /// Makes the tools and Towpath's image.
    pub(crate) fn prepare(site: Site, progress: Progress) -> Result<Self> {
        let tools = Tools::prepare(&site, &progress)?;
        let release = image::build(&site, &progress)?;
        Ok(Self { site, progress, tools, release })
    }

    /// Starts a cluster without a network. What an interrupted bench left of it is removed before.
    pub(crate) fn cluster(&self, name: &str, nodes: u8) -> Result<BenchCluster> {
        cluster::remove(&self.site, name)?;
        let start = Instant::now();
        let spec = Spec { name: name.parse::<ClusterName>()?, family: IpFamily::V4, nodes: (1..=nodes).collect() };
        let up = Cluster::up(&self.site, &self.tools, spec, self.progress);
        let cluster = up.inspect_err(|_| drop(cluster::remove(&self.site, name)))?;
        let standing = BenchCluster { cluster, up: start.elapsed() };
        standing
            .apply(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}).to_string())?;
        Ok(standing)
    }

    /// The release of this checkout.
    pub(crate) fn release(&self) -> &Release {
        &self.release
    }

    /// Loads the image and installs the operator. Returns how long that took.
    pub(crate) fn install(&self, cluster: &Cluster) -> Result<Duration> {
        let start = Instant::now();
        deploy::install(cluster, &self.release)?;
        Ok(start.elapsed())
    }

    /// Installs everything, and waits until the network is Ready. Returns how long that took.
    pub(crate) fn deploy(&self, cluster: &Cluster) -> Result<Duration> {
        let start = Instant::now();
        deploy::deploy(cluster, &self.release, &self.site.root().join(CONFIG))?;
        Ok(start.elapsed())
    }
}

impl Deref for BenchCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Drop for BenchCluster {
    fn drop(&mut self) {
        if let Err(error) = cluster::remove(self.cluster.site(), self.cluster.name()) {
            self.cluster.progress().step(format!("{error:#}"));
        }
    }
}

/// A pod that does nothing, bound to a node: the scheduler is not measured.
pub(crate) fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "nodeName": node,
            // Not 0: such a pod leaves the API before it leaves its node.
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "towpath.local/agnhost:1", "imagePullPolicy": "IfNotPresent", "args": ["pause"]}],
        },
    })
}

/// Starts pods and waits until they are Ready. Returns their addresses, in the same order.
pub(crate) fn start(cluster: &Cluster, pods: &[Value]) -> Result<Vec<String>> {
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())?;
    wait_for("ready pods of the bench", PODS_BOUND, || {
        let there = cluster.list(&["pods", "-n", NAMESPACE])?;
        let address = |pod: &Value| {
            let known = there.iter().find(|known| known["metadata"]["name"] == pod["metadata"]["name"])?;
            let ready = condition(known, "Ready") == "True";
            ready.then(|| known["status"]["podIP"].as_str().map(str::to_owned)).flatten()
        };
        Ok(pods.iter().map(address).collect())
    })
}

/// Removes every pod of the bench, and waits until no node has one.
pub(crate) fn clear(cluster: &Cluster) -> Result<()> {
    cluster.kubectl(&["delete", "pods", "--all", "-n", NAMESPACE, "--timeout=120s"])?;
    ensure!(cluster.list(&["pods", "-n", NAMESPACE])?.is_empty(), "pods of the bench are still there");
    Ok(())
}
