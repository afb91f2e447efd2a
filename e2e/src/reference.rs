//! A reference network to measure against: the `bridge` and `host-local` plugins of Debian's
//! containernetworking-plugins, with a static route on every node to every other node's pods. No overlay, no policy.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::cluster::{Cluster, IpFamily};
use crate::node::Node;

/// Where Debian's package has its plugins.
pub(crate) const DEBIAN_PLUGINS: &str = "/usr/lib/cni";
const PLUGINS: [&str; 3] = ["bridge", "host-local", "portmap"];
const CONFIG: &str = "/etc/cni/net.d/20-reference.conflist";
const TABLE: &str = "reference";
const BRIDGE: &str = "cni0";
/// An address folder of its own, apart from another network's.
const ADDRESSES: &str = "/var/lib/cni/reference";

impl Cluster {
    /// Gives every node the reference network and waits until all are Ready.
    ///
    /// # Errors
    /// When a node has no podCIDR, a file cannot be written, or the nodes are not Ready within 60 s.
    pub fn reference_network(&self) -> Result<()> {
        let ranges = self.pod_ranges()?;
        for (node, own) in &ranges {
            node.exec(&["sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
            for plugin in PLUGINS {
                let to = node.path("/opt/cni/bin")?.join(plugin);
                fs::copy(Path::new(DEBIAN_PLUGINS).join(plugin), &to)
                    .with_context(|| format!("install {}", to.display()))?;
            }
            for (peer, range) in ranges.iter().filter(|(peer, _)| peer.number() != node.number()) {
                node.exec(&["ip", "route", "replace", range, "via", &peer.addresses()[0].to_string()])?;
            }
            node.exec(&["nft", &masquerade(own)])?;
            let to = node.path(CONFIG)?;
            fs::write(&to, config(own)).with_context(|| format!("write {}", to.display()))?;
        }
        self.wait_nodes_ready(Duration::from_secs(60))
    }

    /// Removes the reference network. Its pods must have been deleted.
    ///
    /// # Errors
    /// When something of it cannot be removed.
    pub fn remove_reference_network(&self) -> Result<()> {
        let ranges = self.pod_ranges()?;
        for (node, _) in &ranges {
            let path = node.path(CONFIG)?;
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            node.exec(&["nft", &format!("delete table ip {TABLE}")])?;
            for (_, range) in ranges.iter().filter(|(peer, _)| peer.number() != node.number()) {
                node.exec(&["ip", "route", "del", range])?;
            }
            // The bridge exists once a pod has started there.
            if node.path(&format!("/sys/class/net/{BRIDGE}"))?.exists() {
                node.exec(&["ip", "link", "del", BRIDGE])?;
            }
        }
        Ok(())
    }

    /// The nodes with the IPv4 range of their pods.
    fn pod_ranges(&self) -> Result<Vec<(Node, String)>> {
        let known = self.list(&["nodes"])?;
        let range = |node: Node| {
            let object = known.iter().find(|object| object["metadata"]["name"] == *node.name());
            let range = object.and_then(|object| object["spec"]["podCIDR"].as_str());
            let range = range.with_context(|| format!("node {} has no podCIDR", node.name()))?.to_owned();
            Ok((node, range))
        };
        self.nodes().into_iter().map(range).collect()
    }
}

/// Masquerades what pods send out of the cluster. The table is recreated each time.
fn masquerade(range: &str) -> String {
    let outside = IpFamily::V4.pod_range();
    format!(
        "add table ip {TABLE}; delete table ip {TABLE}; add table ip {TABLE}; \
         add chain ip {TABLE} postrouting {{ type nat hook postrouting priority srcnat; }}; \
         add rule ip {TABLE} postrouting ip saddr {range} ip daddr != {outside} masquerade"
    )
}

fn config(range: &str) -> String {
    json!({
        "cniVersion": "1.0.0",
        "name": "reference",
        "plugins": [
            {"type": "bridge", "bridge": BRIDGE, "isGateway": true, "hairpinMode": true, "ipMasq": false,
             "ipam": {"type": "host-local", "dataDir": ADDRESSES, "ranges": [[{"subnet": range}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}
