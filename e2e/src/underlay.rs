//! The network below the cluster: a bridge in a namespace of its own, one namespace per machine, joined by veths.
//!
//! Every cluster has its own bridge namespace, so the same addresses serve all of them. Nothing leaves these
//! namespaces.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cluster::IpFamily;
use crate::run;

/// Where iproute2 keeps the names of network namespaces.
const NETNS_DIR: &str = "/run/netns";
/// The bridge, which is also the default gateway of every machine: without a default route the kernel would answer no
/// proxy ARP at all, which is not how a real machine behaves.
const GATEWAY: u8 = 254;
/// The control plane's machine.
pub const CONTROL_PLANE: u8 = 1;
/// Nodes follow this: node n1 is .11.
pub const FIRST_NODE: u8 = 10;

/// IPv4 address of a machine.
#[must_use]
pub const fn ipv4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, host)
}

/// IPv6 address of a machine.
#[must_use]
pub const fn ipv6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, host as u16)
}

/// The name of a namespace of a cluster: `tp.<cluster>.<role>`. Cluster names have no dot, so no two clusters clash.
#[must_use]
pub fn netns(cluster: &str, role: &str) -> String {
    format!("tp.{cluster}.{role}")
}

/// The file that names a namespace.
#[must_use]
pub fn netns_path(name: &str) -> PathBuf {
    PathBuf::from(NETNS_DIR).join(name)
}

/// Creates the bridge.
///
/// # Errors
/// When `ip` fails.
pub fn create(cluster: &str, family: IpFamily) -> Result<()> {
    let net = netns(cluster, "net");
    ip(&["netns", "add", &net])?;
    let mut commands =
        format!("link set lo up\nlink add br0 type bridge\nlink set br0 up\naddr add {}/24 dev br0\n", ipv4(GATEWAY));
    if family == IpFamily::Dual {
        commands += &format!("addr add {}/64 dev br0 nodad\n", ipv6(GATEWAY));
    }
    batch(&net, &commands)
}

/// Creates a machine's namespace and connects it to the bridge.
///
/// # Errors
/// When `ip` fails.
pub fn join(cluster: &str, role: &str, host: u8, family: IpFamily) -> Result<()> {
    let (net, machine) = (netns(cluster, "net"), netns(cluster, role));
    ip(&["netns", "add", &machine])?;
    batch(&net, &format!("link add {role} type veth peer name eth0 netns {machine}\nlink set {role} master br0 up\n"))?;
    let mut commands = format!(
        "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
        ipv4(host),
        ipv4(GATEWAY)
    );
    if family == IpFamily::Dual {
        commands +=
            &format!("addr add {}/64 dev eth0 nodad\nroute add default via {} dev eth0\n", ipv6(host), ipv6(GATEWAY));
    }
    batch(&machine, &commands)
}

/// The namespaces of a cluster that exist.
///
/// # Errors
/// When they cannot be listed.
pub fn present(cluster: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(NETNS_DIR) {
        Ok(entries) => entries,
        // No named namespace was ever created on this machine.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("list {NETNS_DIR}")),
    };
    let prefix = netns(cluster, "");
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix))
        .collect();
    names.sort();
    Ok(names)
}

/// Removes one namespace, and with it every device in it.
///
/// # Errors
/// When `ip` fails.
pub fn remove(name: &str) -> Result<()> {
    ip(&["netns", "del", name])
}

/// Runs `ip -batch` commands inside a namespace.
///
/// # Errors
/// When `ip` fails.
pub fn batch(netns: &str, commands: &str) -> Result<()> {
    for line in commands.lines() {
        let mut words = vec!["-n", netns];
        words.extend(line.split_whitespace());
        ip(&words)?;
    }
    Ok(())
}

fn ip(words: &[&str]) -> Result<()> {
    run::output(Command::new("ip").args(words)).map(drop)
}
