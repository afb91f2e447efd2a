//! A cluster: what it consists of, and the ways to look at it and change it while it runs.

mod control_plane;
mod coredns;
mod down;
mod forward;
mod up;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::node::Node;
use crate::pki::Authority;
use crate::process::Desk;
use crate::progress::Progress;
use crate::run;
use crate::site::Site;
use crate::toolchain::Tools;
use crate::underlay;
use crate::wait::wait_for;

pub(crate) use control_plane::server;
pub use control_plane::{API_PORT, Component};
pub use down::{leftovers, remove};
pub use forward::serve as serve_forward;

/// Which IP families pods, Services and nodes have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    /// IPv4 only.
    V4,
    /// IPv4 first, and IPv6.
    Dual,
}

impl IpFamily {
    /// Range of the pods, as the components' flags take it.
    #[must_use]
    pub const fn pod_range(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::Dual => "10.244.0.0/16,fd00:10:244::/56",
        }
    }

    /// Range of the Services, as the components' flags take it.
    #[must_use]
    pub const fn service_range(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.0/16",
            Self::Dual => "10.96.0.0/16,fd00:10:96::/112",
        }
    }

    /// Addresses of a machine of the underlay.
    #[must_use]
    pub fn addresses(self, host: u8) -> Vec<IpAddr> {
        let v4 = IpAddr::V4(underlay::ipv4(host));
        match self {
            Self::V4 => vec![v4],
            Self::Dual => vec![v4, IpAddr::V6(underlay::ipv6(host))],
        }
    }
}

/// A cluster's name: part of the names of namespaces, control groups and folders, and a host name's label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName(String);

impl ClusterName {
    /// Longest name.
    pub const MAX: usize = 30;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ClusterName {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            !text.is_empty() && text.len() <= Self::MAX && text.bytes().all(allowed) && !text.starts_with('-'),
            "cluster name {text:?}: use 1 to {} of a-z, 0-9 and -, not starting with -",
            Self::MAX
        );
        Ok(Self(text))
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> Self {
        name.0
    }
}

impl std::str::FromStr for ClusterName {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::try_from(text.to_owned())
    }
}

impl std::fmt::Display for ClusterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a cluster is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Spec {
    /// The name.
    pub name: ClusterName,
    /// Families of pods, Services and nodes.
    pub family: IpFamily,
    /// Numbers of the nodes: number 1 is node `n1`. At most [`Spec::MAX_NODES`].
    pub nodes: Vec<u8>,
}

impl Spec {
    /// Highest number of a node: the addresses of the underlay end there.
    pub const MAX_NODES: u8 = 200;
}

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

    /// The name.
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

    /// The binaries and images that it was made with.
    #[must_use]
    pub fn tools(&self) -> &Tools {
        &self.tools
    }

    /// The clock and voice of this run.
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
        Node::new(self.desk(), number, self.spec.family, &self.tools)
    }

    fn desk(&self) -> Desk {
        Desk { cluster: self.name().to_owned(), dir: self.dir(), launcher: self.site.launcher().to_path_buf() }
    }

    fn pki_dir(&self) -> PathBuf {
        self.dir().join("pki")
    }

    fn save(&self) -> Result<()> {
        let file = self.dir().join("cluster.json");
        fs::write(&file, serde_json::to_vec_pretty(&self.spec)?).with_context(|| format!("write {}", file.display()))
    }

    /// A kubectl command for this cluster.
    #[must_use]
    pub fn kubectl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.tools.kubectl());
        command.env("KUBECONFIG", self.kubeconfig()).args(words);
        command
    }

    /// Runs kubectl and gives what it printed.
    ///
    /// # Errors
    /// When kubectl fails: the message has what it said.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        run::output(&mut self.kubectl_command(words))
    }

    /// Runs kubectl and gives its outcome as it is, for calls that are expected to be refused.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub fn kubectl_raw(&self, words: &[&str]) -> Result<Output> {
        run::raw_output(&mut self.kubectl_command(words))
    }

    /// `kubectl get … -o json`, parsed; none where the object does not exist.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn get(&self, words: &[&str]) -> Result<Option<Value>> {
        let mut all = vec!["get", "-o", "json", "--ignore-not-found"];
        all.extend(words);
        let text = self.kubectl(&all)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).with_context(|| format!("kubectl {} printed no JSON", all.join(" ")))
    }

    /// Objects of a list, `kubectl get KIND …`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn list(&self, words: &[&str]) -> Result<Vec<Value>> {
        let list = self.get(words)?.unwrap_or_default();
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Applies manifests server-side, as the owner `towpath-e2e`.
    ///
    /// # Errors
    /// When the API server refuses one.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_with_input(
            &["apply", "--server-side", "--force-conflicts", "--field-manager", "towpath-e2e", "-f", "-"],
            manifests,
        )
    }

    /// Runs kubectl with text on its standard input.
    ///
    /// # Errors
    /// When kubectl fails: the message has what it said.
    pub fn kubectl_with_input(&self, words: &[&str], input: &str) -> Result<String> {
        let file = tempfile(input)?;
        run::output(self.kubectl_command(words).stdin(Stdio::from(file)))
    }

    /// Waits on a condition; on failure the components' health is part of the message.
    ///
    /// # Errors
    /// When the bound has passed or the condition fails.
    pub fn wait<T>(&self, what: &str, bound: Duration, condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        wait_for(what, bound, condition)
    }

    /// Imports an image archive (docker or OCI) into every node, all nodes at once. Gives the names of the images.
    ///
    /// # Errors
    /// When the archive is unreadable or a node refuses it: the message names the node.
    pub fn load(&self, archive: &Path) -> Result<Vec<String>> {
        let nodes = self.nodes();
        let results: Vec<Result<Vec<String>>> = std::thread::scope(|scope| {
            let handles: Vec<_> = nodes.iter().map(|node| scope.spawn(move || node.load(archive))).collect();
            handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|_| bail!("the import's thread panicked")))
                .collect()
        });
        let mut names = Vec::new();
        for (node, result) in nodes.iter().zip(results) {
            names = result.with_context(|| format!("load {} into node {}", archive.display(), node.name()))?;
        }
        Ok(names)
    }

    /// Adds one more node and waits until it is registered. Gives its name.
    ///
    /// # Errors
    /// When the node does not come up: the message has the failing component's log.
    pub fn add_node(&mut self) -> Result<String> {
        let number = self.spec.nodes.iter().max().map_or(1, |last| last + 1);
        ensure!(number <= Spec::MAX_NODES, "a cluster has at most {} nodes", Spec::MAX_NODES);
        self.spec.nodes.push(number);
        self.save()?;
        let node = self.node_numbered(number);
        node.create(&Authority::open(&self.pki_dir())?)?;
        let running = node.start()?;
        node.admit()?;
        self.wait_registered(std::slice::from_ref(&node), || running.check())?;
        Ok(node.name())
    }

    /// Takes a node away for good, as when a machine is lost: its API object goes, its processes are killed.
    ///
    /// # Errors
    /// When the cluster has none of that name, or something of it stays.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.kubectl(&["delete", "node", name, "--ignore-not-found"])?;
        node.destroy()?;
        self.spec.nodes.retain(|number| *number != node.number());
        self.save()
    }

    /// Waits until the API server says that it is ready.
    ///
    /// # Errors
    /// When it is not ready within 60 s, or `check` fails.
    pub fn wait_api(&self, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        self.wait("a ready API server", Duration::from_secs(60), || {
            check()?;
            let ready = self.kubectl_raw(&["get", "--raw=/readyz", "--request-timeout=5s"])?;
            Ok(ready.status.success().then_some(()))
        })
    }

    fn wait_registered(&self, nodes: &[Node], mut check: impl FnMut() -> Result<()>) -> Result<()> {
        self.wait("registration of the nodes with a podCIDR each", Duration::from_secs(90), || {
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
        self.wait("Ready nodes", bound, || {
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

/// An unnamed file with some text, at its beginning: a child reads it however slowly it likes.
fn tempfile(text: &str) -> Result<fs::File> {
    use std::io::{Seek, Write};
    let path =
        std::env::temp_dir().join(format!("towpath-input-{}-{:?}", std::process::id(), std::thread::current().id()));
    let mut file = fs::File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_name_is_safe_in_paths_and_host_names() {
        for (name, ok, why) in [
            ("demo", true, "plain"),
            ("a-1", true, "digits and dashes"),
            ("", false, "empty"),
            ("a.b", false, "the dot separates the parts of a namespace's name"),
            ("../x", false, "leaves the folder"),
            ("-x", false, "looks like a flag"),
            ("abcdefghijklmnopqrstuvwxyz12345", false, "31 characters"),
        ] {
            assert_eq!(name.parse::<ClusterName>().is_ok(), ok, "{name}: {why}");
        }
    }
}
