//! Towpath's objects in a node's kernel and on its disk.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result};
use serde_json::Value;
use towpath_e2e::node::Node;

/// Routing protocol number of our routes.
const PROTOCOL: &str = "157";
/// The overlay's device.
pub(crate) const DEVICE: &str = "flannel.1";
/// Where the CNI plugin keeps a file per address.
const ADDRESSES: &str = "/var/lib/cni/networks/k8s-pod-network";
/// The CNI configuration, which makes the node Ready.
pub(crate) const CONFLIST: &str = "/etc/cni/net.d/10-towpath.conflist";

/// Our routes, as `ip route` prints them.
pub(crate) fn routes(node: &Node) -> Result<Vec<String>> {
    lines(node, &["ip", "route", "show", "table", "all", "proto", PROTOCOL])
}

/// Permanent neighbours on the overlay's device; none without the device.
pub(crate) fn neighbours(node: &Node) -> Result<Vec<String>> {
    device_lines(node, &["ip", "neigh", "show", "dev", DEVICE, "nud", "permanent"])
}

/// FDB entries of the overlay's device; none without the device.
pub(crate) fn fdb(node: &Node) -> Result<Vec<String>> {
    device_lines(node, &["bridge", "fdb", "show", "dev", DEVICE])
}

/// Whether the overlay's device is there.
pub(crate) fn has_device(node: &Node) -> Result<bool> {
    Ok(node.path(&format!("/sys/class/net/{DEVICE}"))?.exists())
}

/// MTU of the overlay's device, as the kernel's file has it; none without the device.
pub(crate) fn mtu(node: &Node) -> Result<Option<String>> {
    let file = node.path(&format!("/sys/class/net/{DEVICE}/mtu"))?;
    match fs::read_to_string(&file) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
    }
}

/// The table as nft lists it, without counters and owner; empty where there is none.
pub(crate) fn table(node: &Node) -> Result<String> {
    let said = node.exec_raw(&["nft", "-s", "list", "table", "inet", "towpath"])?;
    if !said.status.success() {
        return Ok(String::new());
    }
    let said = String::from_utf8(said.stdout)?;
    // The owner is a comment after the table's name and a flag of the table; flags of sets are indented further.
    let lines = said.lines().filter(|line| !line.starts_with("\tflags "));
    Ok(lines.map(|line| line.split(" # progname").next().unwrap_or(line).to_owned() + "\n").collect())
}

/// Handle and text of the rules of one of our chains.
pub(crate) fn rules(node: &Node, chain: &str) -> Result<Vec<(String, String)>> {
    let said = node.exec(&["nft", "-a", "list", "chain", "inet", "towpath", chain])?;
    let rule =
        |line: &str| line.trim().rsplit_once(" # handle ").map(|(text, handle)| (handle.to_owned(), text.to_owned()));
    Ok(said.lines().filter(|line| !line.contains('{')).filter_map(rule).collect())
}

/// Addresses that the CNI plugin has allocated.
pub(crate) fn addresses(node: &Node) -> Result<BTreeSet<String>> {
    let dir = node.path(ADDRESSES)?;
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error).with_context(|| format!("list {}", dir.display())),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect())
}

/// Addresses of the running pods of a node that have an interface of their own.
pub(crate) fn pod_addresses(pods: &[Value], node: &str) -> BTreeSet<String> {
    let here = pods.iter().filter(|pod| pod["spec"]["nodeName"] == node && pod["spec"]["hostNetwork"] != true);
    here.filter_map(|pod| pod["status"]["podIP"].as_str().map(str::to_owned)).collect()
}

fn device_lines(node: &Node, words: &[&str]) -> Result<Vec<String>> {
    if has_device(node)? { lines(node, words) } else { Ok(Vec::new()) }
}

fn lines(node: &Node, words: &[&str]) -> Result<Vec<String>> {
    Ok(node.exec(words)?.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect())
}
