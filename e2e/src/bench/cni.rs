//! CNI ADD and DEL with the real plugin and the real agent, beside Debian's `bridge` and `host-local`.
//!
//! The plugins are called as a runtime calls them, on a node of a cluster. The reference runs in a network namespace of
//! its own on the same node, so that no agent reacts to its interfaces.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use towpath_e2e::node::Node;

use crate::namespaces::Namespaces;
use crate::plugin::{self, DEBIAN_PLUGINS, Plugin};
use crate::report::Table;
use crate::sample::{Sample, ratios};
use crate::setup::{BenchCluster, clear};

/// Containers of one run.
const CONTAINERS: usize = 50;
const ROUNDS: usize = 6;
/// How many calls at once.
const WIDTHS: [usize; 2] = [1, 8];
const VERBS: [&str; 2] = ["ADD", "DEL"];
const OUR_ADDRESSES: &str = "/var/lib/cni/networks/k8s-pod-network";
const REFERENCE_ADDRESSES: &str = "/run/bench-addresses";
/// The reference's network on the node.
const REFERENCE_NETNS: &str = "bench-host";

/// A plugin, its address folder and its times.
struct PluginVariant {
    name: &'static str,
    plugin: Plugin,
    addresses: &'static str,
    /// Times of the calls, by width and verb.
    times: BTreeMap<(usize, &'static str), Vec<Duration>>,
    /// Medians of the rounds in milliseconds, by the same.
    medians: BTreeMap<(usize, &'static str), Vec<f64>>,
}

/// Measures both in turn, and counts leaked addresses.
pub(crate) fn measure(cluster: &BenchCluster) -> Result<Table> {
    let node = cluster.node("n1")?;
    let pods: Vec<Value> = (0..CONTAINERS).map(plugin::held_pod).collect();
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": pods}).to_string())?;
    node.exec(&["ip", "netns", "add", REFERENCE_NETNS])?;
    let mut variants = [ours(&node)?, reference(&node)?];
    let before: Vec<usize> = variants.iter().map(|variant| taken(&node, variant.addresses)).collect::<Result<_>>()?;
    // The first run reads programs and folders into the page cache. It is not measured.
    for variant in &mut variants {
        variant.round(&node, 1)?;
        variant.times.clear();
        variant.medians.clear();
    }
    for _ in 0..ROUNDS {
        for width in WIDTHS {
            variants.iter_mut().try_for_each(|variant| variant.round(&node, width))?;
        }
    }
    let mut leaked = Vec::new();
    for (variant, before) in variants.iter().zip(before) {
        let now = taken(&node, variant.addresses)?;
        leaked.push(format!("{} {}", variant.name, now.saturating_sub(before)));
    }
    node.exec(&["ip", "netns", "del", REFERENCE_NETNS])?;
    clear(cluster)?;
    let mut table = table(&variants)?;
    table.note(format!("Addresses leaked: {}. Aim: 0.", leaked.join(", ")));
    table.note(format!(
        "{ROUNDS} rounds of {CONTAINERS} containers for each line, in turn; the ratio is of the rounds' medians. Towpath waits until \
         the pod's rules are in the kernel; the reference has no rules."
    ));
    Ok(table)
}

fn table(variants: &[PluginVariant; 2]) -> Result<Table> {
    let [ours, reference] = variants;
    let header = ["call", "at once", "plugin", "p50 ms", "p99 ms", "ratio to the reference (min–max)", "aim"];
    let mut table = Table::new("CNI calls", &header);
    for width in WIDTHS {
        for verb in VERBS {
            let key = (width, verb);
            for variant in variants {
                let times = variant.times.get(&key).cloned().unwrap_or_default();
                let sample = Sample::of_millis(times).context("no calls")?;
                let ratio = ratios(&ours.medians[&key], &reference.medians[&key]).context("no rounds")?;
                let (ratio, aim) =
                    if variant.name == ours.name { (ratio.spread(2), "≤ 1") } else { (String::new(), "") };
                let (half, most) = (format!("{:.1}", sample.median()), format!("{:.1}", sample.percentile(99)));
                table.row([verb.into(), width.to_string(), variant.name.into(), half, most, ratio, aim.into()]);
            }
        }
    }
    Ok(table)
}

fn ours(node: &Node) -> Result<PluginVariant> {
    Ok(PluginVariant {
        name: "towpath",
        plugin: Plugin::towpath(node)?,
        addresses: OUR_ADDRESSES,
        times: BTreeMap::new(),
        medians: BTreeMap::new(),
    })
}

fn reference(node: &Node) -> Result<PluginVariant> {
    let config = json!({
        "cniVersion": "1.0.0", "name": "bench", "type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": false, "mtu": 1450,
        "ipam": {"type": "host-local", "dataDir": REFERENCE_ADDRESSES, "ranges": [[{"subnet": "10.251.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]},
    });
    Ok(PluginVariant {
        name: "bridge + host-local",
        plugin: Plugin {
            program: format!("{DEBIAN_PLUGINS}/bridge"),
            config: config.to_string(),
            namespaces: Namespaces::beside_node(node, REFERENCE_NETNS)?,
        },
        addresses: "/run/bench-addresses/bench",
        times: BTreeMap::new(),
        medians: BTreeMap::new(),
    })
}

/// Number of reserved addresses: each is a file with the address as its name.
fn taken(node: &Node, folder: &str) -> Result<usize> {
    let path = node.path(folder)?;
    if !path.exists() {
        return Ok(0);
    }
    let files = path.read_dir().with_context(|| format!("list {folder}"))?;
    Ok(files.filter_map(|file| file.ok()?.file_name().into_string().ok()?.parse::<std::net::IpAddr>().ok()).count())
}

impl PluginVariant {
    /// Adds all containers and deletes them again.
    fn round(&mut self, node: &Node, width: usize) -> Result<()> {
        plugin::container_namespaces(node, "add", CONTAINERS)?;
        for verb in VERBS {
            let times =
                self.plugin.calls(verb, CONTAINERS, width).with_context(|| format!("{verb} of {}", self.name))?;
            let median = Sample::of_millis(times.iter().copied()).context("no calls")?.median();
            self.times.entry((width, verb)).or_default().extend(times);
            self.medians.entry((width, verb)).or_default().push(median);
        }
        plugin::container_namespaces(node, "del", CONTAINERS)
    }
}
