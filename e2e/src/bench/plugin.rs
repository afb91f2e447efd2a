//! CNI plugins, called as a runtime calls them, for containers that have nothing but a network namespace.

use std::fs::File;
use std::io::{Seek, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use towpath_e2e::node::Node;

use crate::namespaces::Namespaces;
use crate::setup::NAMESPACE;

/// Debian's plugins.
pub(crate) const DEBIAN_PLUGINS: &str = "/usr/lib/cni";
const OURS: &str = "/etc/cni/net.d/10-towpath.conflist";

/// A plugin, its configuration, and the namespaces that it is called in.
pub(crate) struct Plugin {
    pub(crate) program: String,
    pub(crate) config: String,
    pub(crate) namespaces: Namespaces,
}

/// A Pod that is never scheduled: no kubelet starts it, but the agent knows it. Without a Pod object ADD would fail.
pub(crate) fn held_pod(index: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod_name(index), "namespace": NAMESPACE, "labels": {"app": pod_name(index)}},
        "spec": {
            "schedulingGates": [{"name": "towpath.io/bench"}],
            "containers": [{"name": "main", "image": "towpath.local/agnhost:1", "imagePullPolicy": "IfNotPresent"}],
        },
    })
}

/// Name of a held pod, and its label `app`.
pub(crate) fn pod_name(index: usize) -> String {
    format!("held-{index}")
}

fn container_netns(index: usize) -> String {
    format!("bench-{index}")
}

/// Creates or deletes (`add`, `del`) the network namespaces of that many containers on a node.
pub(crate) fn container_namespaces(node: &Node, verb: &str, count: usize) -> Result<()> {
    let commands: String = (0..count).map(|index| format!("netns {verb} {}\n", container_netns(index))).collect();
    node.exec(&["sh", "-c", &format!("ip -batch - <<'END'\n{commands}END")]).map(drop)
}

impl Plugin {
    /// Towpath's plugin, as installed on a node.
    pub(crate) fn towpath(node: &Node) -> Result<Self> {
        let list: Value = serde_json::from_str(&node.read(OURS)?).with_context(|| format!("{OURS} is no JSON"))?;
        let mut config = list["plugins"][0].clone();
        config["name"] = list["name"].clone();
        config["cniVersion"] = list["cniVersion"].clone();
        let namespaces = Namespaces::of_node(node)?;
        Ok(Self { program: "/opt/cni/bin/towpath".into(), config: config.to_string(), namespaces })
    }

    /// Calls it for that many containers, `width` at once. Returns how long each call took.
    pub(crate) fn calls(&self, verb: &str, count: usize, width: usize) -> Result<Vec<Duration>> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<Duration>> {
            self.namespaces.enter()?;
            let mut times = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(times);
                }
                times.push(self.call(verb, index)?);
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
            let ends =
                workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow!("a caller panicked"))));
            Ok(ends.collect::<Result<Vec<_>>>()?.concat())
        })
    }

    fn call(&self, verb: &str, index: usize) -> Result<Duration> {
        let mut input = File::from(nix::sys::memfd::memfd_create(c"config", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?);
        input.write_all(self.config.as_bytes())?;
        input.rewind()?;
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("bench{index}"))
            .env("CNI_NETNS", format!("/run/netns/{}", container_netns(index)))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", DEBIAN_PLUGINS)
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={}", pod_name(index)))
            .stdin(Stdio::from(input));
        let start = Instant::now();
        let answer = command.output().with_context(|| format!("start {}", self.program))?;
        let took = start.elapsed();
        let said = String::from_utf8_lossy(&answer.stdout);
        ensure!(answer.status.success(), "{} {verb} answered {said}", self.program);
        Ok(took)
    }
}
