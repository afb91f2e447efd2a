//! A cluster: its parts, and how to query and change it while it runs.

mod change;
mod control_plane;
mod coredns;
mod down;
mod forward;
mod kubectl;
mod spec;
mod up;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::node::Node;
use crate::process::Supervisor;
use crate::progress::Progress;
use crate::site::Site;
use crate::toolchain::Tools;
use crate::wait::wait_for;

pub(crate) use control_plane::server;
pub use control_plane::{API_PORT, Component};
pub use down::{leftovers, remove};
pub use forward::serve as serve_forward;
pub use spec::{ClusterName, IpFamily, Spec};

/// A running cluster.
#[derive(Debug, Clone)]
pub struct Cluster {
    site: Site,
    tools: Tools,
    spec: Spec,
    progress: Progress,
}

impl Cluster {
    /// Finds a cluster that runs.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn open(site: &Site, tools: &Tools, name: &ClusterName, progress: Progress) -> Result<Self> {
        let file = site.cluster_dir(name.as_str()).join("cluster.json");
        ensure!(file.exists(), "there is no cluster {name}: make cluster-up CLUSTER={name}");
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let spec = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged: make cluster-down CLUSTER={name}", file.display()))?;
        Ok(Self { site: site.clone(), tools: tools.clone(), spec, progress })
    }

    /// What the cluster is made of.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Returns the cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.spec.name.as_str()
    }

    /// The state folder.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.site.cluster_dir(self.name())
    }

    /// The checkout that it belongs to.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The binaries and images of the cluster.
    #[must_use]
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// Prints progress messages.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// The administrator's kubeconfig, for use from the machine's own shell.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("kubeconfig")
    }

    /// The nodes, by number.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        self.spec.nodes.iter().map(|number| self.node_numbered(*number)).collect()
    }

    /// One node by its name.
    ///
    /// # Errors
    /// When the cluster has none of that name.
    pub fn node(&self, name: &str) -> Result<Node> {
        self.nodes()
            .into_iter()
            .find(|node| node.name() == name)
            .with_context(|| format!("no node {name} in {}", self.name()))
    }

    fn node_numbered(&self, number: u8) -> Node {
        Node::new(self.supervisor(), number, self.spec.family, &self.tools)
    }

    fn supervisor(&self) -> Supervisor {
        Supervisor { cluster: self.name().to_owned(), dir: self.dir(), launcher: self.site.launcher().to_path_buf() }
    }

    fn pki_dir(&self) -> PathBuf {
        self.dir().join("pki")
    }

    fn save(&self) -> Result<()> {
        let file = self.dir().join("cluster.json");
        fs::write(&file, serde_json::to_vec_pretty(&self.spec)?).with_context(|| format!("write {}", file.display()))
    }

    /// Waits until the API server reports that it is ready.
    ///
    /// # Errors
    /// When it is not ready within 60 s, or `check` fails.
    pub fn wait_api(&self, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        wait_for("a ready API server", Duration::from_secs(60), || {
            check()?;
            let ready = self.kubectl_raw(&["get", "--raw=/readyz", "--request-timeout=5s"])?;
            Ok(ready.status.success().then_some(()))
        })
    }

    fn wait_registered(&self, nodes: &[Node], mut check: impl FnMut() -> Result<()>) -> Result<()> {
        wait_for("registration of the nodes with a podCIDR each", Duration::from_secs(90), || {
            check()?;
            let known = self.list(&["nodes"])?;
            let registered = |node: &Node| {
                known
                    .iter()
                    .any(|object| object["metadata"]["name"] == *node.name() && object["spec"]["podCIDR"].is_string())
            };
            Ok(nodes.iter().all(registered).then_some(()))
        })
    }

    /// Waits until every node is Ready, which needs a pod network.
    ///
    /// # Errors
    /// When `bound` has passed.
    pub fn wait_nodes_ready(&self, bound: Duration) -> Result<()> {
        wait_for("Ready nodes", bound, || {
            let known = self.list(&["nodes"])?;
            Ok((known.len() == self.spec.nodes.len() && known.iter().all(|node| condition(node, "Ready") == "True"))
                .then_some(()))
        })
    }
}

/// Status of one condition of an object: `True`, `False` or `Unknown`; empty where there is none.
#[must_use]
pub fn condition(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    found.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned()
}
