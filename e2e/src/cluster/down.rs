//! Removes a cluster. It goes by what exists, not by what was recorded, so that it also cleans up after an `up` that
//! failed or was killed.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::site::Site;
use crate::{cgroup, underlay};

/// Removes every process, namespace, mount, control group and file of a cluster. Succeeds if there are none.
///
/// # Errors
/// When something stays: the message names it.
pub fn remove(site: &Site, name: &str) -> Result<()> {
    let group = cgroup::cluster_group(name);
    // Nodes' mounts live in mount namespaces that only their processes hold.
    cgroup::kill_all(&group)?;
    for netns in underlay::present(name)? {
        underlay::remove(&netns)?;
    }
    cgroup::remove(&group)?;
    let dir = site.cluster_dir(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    let left = leftovers(site, name)?;
    ensure!(left.is_empty(), "cluster {name} is not removed completely: {}", left.join(", "));
    Ok(())
}

/// Describes what exists of a cluster on this machine; empty if there is nothing.
///
/// # Errors
/// When mounts or namespaces cannot be listed.
pub fn leftovers(site: &Site, name: &str) -> Result<Vec<String>> {
    let dir = site.cluster_dir(name);
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let below = dir.display().to_string();
    let mut left: Vec<String> = cgroup::pids(name)?.iter().map(|pid| format!("process {pid}")).collect();
    left.extend(underlay::present(name)?.iter().map(|netns| format!("namespace {netns}")));
    left.extend(
        cgroup::present(&cgroup::cluster_group(name))?.iter().map(|group| format!("control group {}", group.display())),
    );
    left.extend(
        mounts
            .lines()
            .filter_map(|line| line.split(' ').nth(1))
            .filter(|at| at.starts_with(&below))
            .map(|at| format!("mount {at}")),
    );
    if dir.exists() {
        left.push(format!("folder {below}"));
    }
    Ok(left)
}
