//! Removing a cluster. It goes by what is really there, not by what was noted, so that it also cleans up after an `up`
//! that failed or was killed half-way.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::site::Site;
use crate::{cgroup, underlay};

/// Removes every process, namespace, mount, control group and file of a cluster; fine if there are none.
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
    ensure!(left.is_empty(), "of cluster {name} there is still: {}", left.join(", "));
    Ok(())
}

/// What there is of a cluster on this machine, in words; empty when there is nothing.
///
/// # Errors
/// When the machine cannot be looked at.
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
