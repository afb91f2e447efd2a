//! A node: a set of namespaces on this machine in which containerd, kubelet and kube-proxy run. This module is what the
//! harness sees of it.

mod init;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cluster::IpFamily;
use crate::pki::{Authority, Subject};
use crate::process::{Program, Running, Supervisor, live_pid};
use crate::reference::DEBIAN_PLUGINS;
use crate::toolchain::Tools;
use crate::wait::wait_for;
use crate::{cgroup, cluster, run, underlay};

pub use init::{hold, init};

/// One node of a cluster.
#[derive(Debug, Clone)]
pub struct Node {
    supervisor: Supervisor,
    number: u8,
    family: IpFamily,
    tools: Tools,
}

/// What a node's first process needs to know. The harness writes it to a file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct NodeSpec {
    name: String,
    dir: PathBuf,
    log_dir: PathBuf,
    pid_file: PathBuf,
    launcher: PathBuf,
    /// Folders of the machine that stay reachable under their path.
    keep: Vec<PathBuf>,
    images: Vec<PathBuf>,
    kube_proxy: Vec<String>,
    kubelet: Vec<String>,
}

impl Node {
    pub(crate) fn new(supervisor: Supervisor, number: u8, family: IpFamily, tools: &Tools) -> Self {
        Self { supervisor, number, family, tools: tools.clone() }
    }

    /// Name of the node in Kubernetes, and its host name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("n{}", self.number)
    }

    /// Number of the node in its cluster.
    #[must_use]
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its addresses in the underlay, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> Vec<std::net::IpAddr> {
        self.family.addresses(underlay::FIRST_NODE + self.number)
    }

    /// Name of its network namespace on the machine.
    #[must_use]
    pub fn netns(&self) -> String {
        underlay::netns(&self.supervisor.cluster, &self.name())
    }

    /// The folder that holds everything the node writes.
    fn dir(&self) -> PathBuf {
        self.supervisor.dir.join("node").join(self.name())
    }

    fn init_pid_file(&self) -> PathBuf {
        self.supervisor.pid_file(&format!("{}-init", self.name()))
    }

    /// Creates network namespace, control groups, certificate and configuration of the node.
    pub(crate) fn create(&self, authority: &Authority) -> Result<()> {
        let (name, dir) = (self.name(), self.dir());
        underlay::join(&self.supervisor.cluster, &name, underlay::FIRST_NODE + self.number, self.family)?;
        cgroup::create(&cgroup::node_group(&self.supervisor.cluster, &name))?;
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        // containerd sets up every sandbox's loopback with this plugin itself, so each node has it before any network.
        let plugins = dir.join("opt/cni/bin");
        fs::create_dir_all(&plugins).with_context(|| format!("create {}", plugins.display()))?;
        let loopback = Path::new(DEBIAN_PLUGINS).join("loopback");
        fs::copy(&loopback, plugins.join("loopback")).with_context(|| format!("copy {}", loopback.display()))?;
        let user = format!("system:node:{name}");
        authority.issue(&Subject {
            file: &name,
            user: &user,
            group: "system:nodes",
            addresses: self.addresses(),
            names: vec![name.clone()],
        })?;
        let pki = self.supervisor.dir.join("pki");
        authority.kubeconfig(&name, &cluster::server(), &pki.join(format!("{name}.conf")))?;
        self.write("containerd.toml", &self.containerd_config())?;
        self.write("kubelet.json", &serde_json::to_string_pretty(&self.kubelet_config(&pki))?)?;
        // Nobody answers there: only the cluster's own names resolve.
        self.write("resolv.conf", "nameserver 172.30.0.254\n")?;
        self.write("node.json", &serde_json::to_string_pretty(&self.spec(&pki))?)
    }

    /// Starts the node. Its images are imported at once, its kubelet starts after [`Node::admit`].
    pub(crate) fn start(&self) -> Result<Running> {
        let spec = self.dir().join("node.json");
        let launcher = self.supervisor.launcher.display().to_string();
        self.supervisor.start(&Program {
            name: self.name(),
            group: format!("{}/system", self.name()),
            role: Some(self.name()),
            command: vec![launcher, "node".into(), "--spec".into(), spec.display().to_string()],
        })
    }

    /// Starts the kubelet and kube-proxy. They must not start before the API server is ready, because they back off for
    /// long after a failure.
    pub(crate) fn admit(&self) -> Result<()> {
        self.write("admitted", "")
    }

    /// Kills the node's processes and removes its namespace, control groups and files.
    pub(crate) fn destroy(&self) -> Result<()> {
        let group = cgroup::node_group(&self.supervisor.cluster, &self.name());
        cgroup::kill_all(&group)?;
        underlay::remove(&self.netns())?;
        cgroup::remove(&group)?;
        fs::remove_dir_all(self.dir()).with_context(|| format!("remove {}", self.dir().display()))
    }

    /// Pid of the node's first process in the machine's PID namespace.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn init_pid(&self) -> Result<i32> {
        live_pid(&self.init_pid_file())?.with_context(|| format!("node {} does not run", self.name()))
    }

    /// A command that runs inside all of the node's namespaces.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init_pid()?.to_string(), "--mount", "--net", "--pid", "--uts", "--ipc", "--"])
            .args(words);
        Ok(command)
    }

    /// Runs a command inside the node and returns its output.
    ///
    /// # Errors
    /// When it fails: the message has its output.
    pub fn exec(&self, words: &[&str]) -> Result<String> {
        run::output(&mut self.command(words)?).with_context(|| format!("on node {}", self.name()))
    }

    /// Runs a command inside the node and returns status and output.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn exec_raw(&self, words: &[&str]) -> Result<Output> {
        run::raw_output(&mut self.command(words)?)
    }

    /// The machine's path of a node's file: `/proc/<pid>/root/etc/cni/net.d` for `/etc/cni/net.d`.
    ///
    /// # Errors
    /// When the node does not run.
    pub fn path(&self, inside: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/proc/{}/root", self.init_pid()?)).join(inside.trim_start_matches('/')))
    }

    /// Reads a file of the node.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(&self, inside: &str) -> Result<String> {
        let path = self.path(inside)?;
        fs::read_to_string(&path).with_context(|| format!("read {inside} on node {}", self.name()))
    }

    /// Imports an image archive (docker or OCI). Returns the names of the images in it.
    ///
    /// # Errors
    /// When the archive is unreadable, holds no image, or containerd rejects it.
    pub fn load(&self, archive: &Path) -> Result<Vec<String>> {
        let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
        let said =
            run::output(self.command(&["ctr", "-n", "k8s.io", "images", "import", "-"])?.stdin(Stdio::from(file)))?;
        let names = init::imported(&said);
        ensure!(!names.is_empty(), "{} holds no image with a name", archive.display());
        Ok(names)
    }

    /// Pid of a process of a pod on this node, in the machine's PID namespace.
    ///
    /// # Errors
    /// When the pod has no process within 10 s.
    pub fn pod_pid(&self, uid: &str) -> Result<i32> {
        let group = cgroup::cluster_group(&self.supervisor.cluster);
        wait_for(&format!("a process of the pod with UID {uid}"), Duration::from_secs(10), || {
            Ok(pod_process(&group, uid))
        })
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.dir().join(file);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    fn containerd_config(&self) -> String {
        format!(
            r#"version = 2
# It would make a folder of its own in /opt.
disabled_plugins = ["io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{}"
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE the kernel refuses a negative score, and every sandbox with it.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#,
            crate::toolchain::PAUSE_IMAGE
        )
    }

    fn kubelet_config(&self, pki: &Path) -> serde_json::Value {
        let name = self.name();
        serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            // The default of Kubernetes 1.35 rejects control groups version 1.
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", cgroup::node_group(&self.supervisor.cluster, &name)),
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": pki.join("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": pki.join(format!("{name}.crt")),
            "tlsPrivateKeyFile": pki.join(format!("{name}.key")),
            "clusterDNS": ["10.96.0.10"],
            "clusterDomain": "cluster.local",
            "resolvConf": self.dir().join("resolv.conf"),
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "evictionHard": {"memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
            "nodeStatusUpdateFrequency": "4s",
        })
    }

    fn spec(&self, pki: &Path) -> NodeSpec {
        let name = self.name();
        let addresses: Vec<String> = self.addresses().iter().map(ToString::to_string).collect();
        let conf = |file: &str| format!("--kubeconfig={}", pki.join(file).display());
        NodeSpec {
            dir: self.dir(),
            log_dir: self.supervisor.dir.join("log"),
            pid_file: self.init_pid_file(),
            launcher: self.supervisor.launcher.clone(),
            keep: vec![self.supervisor.dir.clone(), self.tools.dir().to_path_buf()],
            images: self.tools.images(),
            kube_proxy: vec![
                self.tools.kubernetes("kube-proxy"),
                conf("proxy.conf"),
                "--proxy-mode=nftables".into(),
                format!("--cluster-cidr={}", self.family.pod_range()),
                format!("--hostname-override={name}"),
                "--conntrack-max-per-core=0".into(),
                "--oom-score-adj=0".into(),
            ],
            kubelet: vec![
                self.tools.kubernetes("kubelet"),
                format!("--config={}", self.dir().join("kubelet.json").display()),
                conf(&format!("{name}.conf")),
                format!("--hostname-override={name}"),
                format!("--node-ip={}", addresses.join(",")),
                "--root-dir=/var/lib/kubelet".into(),
                "--v=2".into(),
            ],
            name,
        }
    }
}

/// A process of the pod with this UID: the kubelet names the pod's control group after it.
fn pod_process(group: &str, uid: &str) -> Option<i32> {
    let marker = format!("pod{uid}");
    fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()).find(|pid| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.lines().any(|line| line.contains(group) && line.contains(&marker))
    })
}
