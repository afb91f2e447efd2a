//! Namespaces to measure from: those of a node, of a pod, or of a machine that the bench made itself.
//!
//! A thread enters them and ends there. What it opens or starts stays inside: sockets and children need no wrapper
//! around them, so none is measured along.

use std::fs::File;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};
use towpath_e2e::cluster::Cluster;
use towpath_e2e::node::Node;
use towpath_e2e::underlay;

/// Namespaces, held open.
#[derive(Debug)]
pub(crate) struct Namespaces {
    net: File,
    /// Mounts and processes of a node.
    node: Option<(File, File)>,
}

impl Namespaces {
    /// Everything of a node, as its own programs see it.
    pub(crate) fn of_node(node: &Node) -> Result<Self> {
        let namespace = |kind: &str| open(format!("/proc/{}/ns/{kind}", node.init_pid()?));
        Ok(Self { net: namespace("net")?, node: Some((namespace("mnt")?, namespace("pid")?)) })
    }

    /// The files and processes of a node with another network, which has a name on the node.
    pub(crate) fn beside_node(node: &Node, netns: &str) -> Result<Self> {
        let net = node.path(&format!("/run/netns/{netns}"))?;
        Ok(Self { net: open(net)?, ..Self::of_node(node)? })
    }

    /// The network of a pod.
    pub(crate) fn of_pod(cluster: &Cluster, namespace: &str, name: &str) -> Result<Self> {
        let pod = cluster.get(&["pod", name, "-n", namespace])?.with_context(|| format!("there is no pod {name}"))?;
        let node = pod["spec"]["nodeName"].as_str().with_context(|| format!("pod {name} is on no node"))?;
        let uid = pod["metadata"]["uid"].as_str().with_context(|| format!("pod {name} has no UID"))?;
        let pid = cluster.node(node)?.pod_pid(uid)?;
        Ok(Self { net: open(format!("/proc/{pid}/ns/net"))?, node: None })
    }

    /// A network namespace with a name on the machine.
    pub(crate) fn of_netns(name: &str) -> Result<Self> {
        Ok(Self { net: open(underlay::netns_path(name))?, node: None })
    }

    /// The same namespaces, to be used by another thread.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let clone = |file: &File| file.try_clone().context("clone a namespace's file");
        let node = self.node.as_ref().map(|(mounts, pids)| Ok::<_, anyhow::Error>((clone(mounts)?, clone(pids)?)));
        Ok(Self { net: clone(&self.net)?, node: node.transpose()? })
    }

    /// Runs `act` on a thread inside.
    pub(crate) fn run<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                act()
            });
            thread.join().unwrap_or_else(|_| Err(anyhow!("the thread in the namespace panicked")))
        })
    }

    /// Moves this thread inside, for good. NodeSpec a node it cannot start further threads.
    pub(crate) fn enter(&self) -> Result<()> {
        setns(&self.net, CloneFlags::CLONE_NEWNET).context("enter a network namespace")?;
        if let Some((mounts, pids)) = &self.node {
            unshare(CloneFlags::CLONE_FS).context("get a root folder of the thread's own")?;
            setns(mounts, CloneFlags::CLONE_NEWNS).context("enter a node's mounts")?;
            setns(pids, CloneFlags::CLONE_NEWPID).context("enter a node's processes")?;
        }
        Ok(())
    }
}

fn open(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    File::open(path).with_context(|| format!("open {}", path.display()))
}
