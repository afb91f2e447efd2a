//! CNI ADD and DEL with the real plugin and the real agent, beside Debian's `bridge` and `host-local`.
//!
//! The plugins are called as a runtime calls them, on a node of a cluster. Pods that no kubelet wants stand for the
//! agent's knowledge of them: without a Pod object it would rightly let nobody in. The reference runs in a network
//! namespace of its own on the same node, so that nobody reacts to its interfaces.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use towpath_e2e::node::Node;

use crate::ground::{NAMESPACE, Standing, clear};
use crate::report::Table;
use crate::sample::{Sample, ratios};
use crate::spot::Spot;

/// Containers of one run.
const CONTAINERS: usize = 50;
const ROUNDS: usize = 6;
/// How many calls at once.
const WIDTHS: [usize; 2] = [1, 8];
const VERBS: [&str; 2] = ["ADD", "DEL"];
/// Debian's plugins.
const DEBIAN_PLUGINS: &str = "/usr/lib/cni";
const OURS: &str = "/etc/cni/net.d/10-towpath.conflist";
const OUR_ADDRESSES: &str = "/var/lib/cni/networks/k8s-pod-network";
const REFERENCE_ADDRESSES: &str = "/run/bench-addresses";
/// The reference's network on the node.
const REFERENCE_NETNS: &str = "bench-host";

/// A plugin and the place that it works in.
struct Arm {
    name: &'static str,
    plugin: String,
    config: String,
    spot: Spot,
    addresses: &'static str,
    /// Times of the calls, by width and verb.
    times: BTreeMap<(usize, &'static str), Vec<Duration>>,
    /// Medians of the rounds in milliseconds, by the same.
    medians: BTreeMap<(usize, &'static str), Vec<f64>>,
}

/// Measures both in turn, and looks whether an address stayed behind.
pub(crate) fn measure(cluster: &Standing) -> Result<Table> {
    let node = cluster.node("n1")?;
    let pods: Vec<Value> = (0..CONTAINERS).map(held_pod).collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())?;
    node.exec(&["ip", "netns", "add", REFERENCE_NETNS])?;
    let mut arms = [ours(&node)?, reference(&node)?];
    let before: Vec<usize> = arms.iter().map(|arm| taken(&node, arm.addresses)).collect::<Result<_>>()?;
    // Programs and folders that are read for the first time are nobody's to measure.
    for arm in &mut arms {
        arm.round(&node, 1)?;
        arm.times.clear();
        arm.medians.clear();
    }
    for _ in 0..ROUNDS {
        for width in WIDTHS {
            arms.iter_mut().try_for_each(|arm| arm.round(&node, width))?;
        }
    }
    let mut leaked = Vec::new();
    for (arm, before) in arms.iter().zip(before) {
        let now = taken(&node, arm.addresses)?;
        leaked.push(format!("{} {}", arm.name, now.saturating_sub(before)));
    }
    node.exec(&["ip", "netns", "del", REFERENCE_NETNS])?;
    clear(cluster)?;
    let mut table = table(&arms)?;
    table.note(format!("Addresses leaked: {}. Aim: 0.", leaked.join(", ")));
    table.note(format!(
        "{ROUNDS} rounds of {CONTAINERS} containers for each line, in turn; the ratio is of the rounds' medians. Ours waits until \
         the agent has the pod's rules in the kernel; the reference has no rules."
    ));
    Ok(table)
}

fn table(arms: &[Arm; 2]) -> Result<Table> {
    let [ours, reference] = arms;
    let header = ["call", "at once", "plugin", "p50 ms", "p99 ms", "ratio to the reference (least–most)", "aim"];
    let mut table = Table::new("CNI calls", &header);
    for width in WIDTHS {
        for verb in VERBS {
            let key = (width, verb);
            for arm in arms {
                let times = arm.times.get(&key).cloned().unwrap_or_default();
                let sample = Sample::of_millis(times).context("no calls")?;
                let ratio = ratios(&ours.medians[&key], &reference.medians[&key]).context("no rounds")?;
                let (ratio, aim) = if arm.name == ours.name { (ratio.spread(2), "≤ 1") } else { (String::new(), "") };
                let (half, most) = (format!("{:.1}", sample.median()), format!("{:.1}", sample.percentile(99)));
                table.row([verb.into(), width.to_string(), arm.name.into(), half, most, ratio, aim.into()]);
            }
        }
    }
    Ok(table)
}

/// A Pod that waits for ever to be scheduled.
fn held_pod(index: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod_name(index), "namespace": NAMESPACE, "labels": {"app": "held"}},
        "spec": {
            "schedulingGates": [{"name": "towpath.io/bench"}],
            "containers": [{"name": "main", "image": "towpath.local/agnhost:1", "imagePullPolicy": "IfNotPresent"}],
        },
    })
}

fn pod_name(index: usize) -> String {
    format!("held-{index}")
}

fn container_netns(index: usize) -> String {
    format!("bench-{index}")
}

fn ours(node: &Node) -> Result<Arm> {
    let list: Value = serde_json::from_str(&node.read(OURS)?).with_context(|| format!("{OURS} is no JSON"))?;
    let mut config = list["plugins"][0].clone();
    config["name"] = list["name"].clone();
    config["cniVersion"] = list["cniVersion"].clone();
    Ok(Arm {
        name: "towpath",
        plugin: "/opt/cni/bin/towpath".into(),
        config: config.to_string(),
        spot: Spot::of_node(node)?,
        addresses: OUR_ADDRESSES,
        times: BTreeMap::new(),
        medians: BTreeMap::new(),
    })
}

fn reference(node: &Node) -> Result<Arm> {
    let config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": false, "mtu": 1450,
        "ipam": {"type": "host-local", "dataDir": REFERENCE_ADDRESSES, "ranges": [[{"subnet": "10.251.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
    });
    Ok(Arm {
        name: "bridge + host-local",
        plugin: format!("{DEBIAN_PLUGINS}/bridge"),
        config: config.to_string(),
        spot: Spot::beside_node(node, REFERENCE_NETNS)?,
        addresses: "/run/bench-addresses/bench",
        times: BTreeMap::new(),
        medians: BTreeMap::new(),
    })
}

/// How many addresses are reserved: each is a file with the address as its name.
fn taken(node: &Node, folder: &str) -> Result<usize> {
    let path = node.path(folder)?;
    if !path.exists() {
        return Ok(0);
    }
    let files = path.read_dir().with_context(|| format!("list {folder}"))?;
    Ok(files.filter_map(|file| file.ok()?.file_name().into_string().ok()?.parse::<std::net::IpAddr>().ok()).count())
}

impl Arm {
    /// Adds all containers and deletes them again.
    fn round(&mut self, node: &Node, width: usize) -> Result<()> {
        let each = |verb: &str| -> String {
            (0..CONTAINERS).map(|index| format!("netns {verb} {}\n", container_netns(index))).collect()
        };
        let batch =
            |commands: String| node.exec(&["sh", "-c", &format!("ip -batch - <<'END'\n{commands}END")]).map(drop);
        batch(each("add"))?;
        for verb in VERBS {
            let times = self.calls(verb, width).with_context(|| format!("{verb} of {}", self.name))?;
            let median = Sample::of_millis(times.iter().copied()).context("no calls")?.median();
            self.times.entry((width, verb)).or_default().extend(times);
            self.medians.entry((width, verb)).or_default().push(median);
        }
        batch(each("del"))
    }

    fn calls(&self, verb: &str, width: usize) -> Result<Vec<Duration>> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<Duration>> {
            self.spot.enter()?;
            let mut times = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= CONTAINERS {
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
        let mut command = Command::new(&self.plugin);
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
        let answer = command.output().with_context(|| format!("start {}", self.plugin))?;
        let took = start.elapsed();
        let said = String::from_utf8_lossy(&answer.stdout);
        ensure!(answer.status.success(), "{} {verb} said {said}", self.plugin);
        Ok(took)
    }
}
