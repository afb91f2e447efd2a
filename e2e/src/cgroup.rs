//! Control groups: one folder per cluster in every hierarchy, one per node below it.
//!
//! One hierarchy also serves as the record of who belongs to a cluster: every process of a cluster starts in it,
//! children stay in it, so that `down` finds them all by pid, also when the harness itself was killed half-way through
//! `up`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_for;

const ROOT: &str = "/sys/fs/cgroup";
/// Time for killed processes to end; a process in the middle of a disk write takes longer.
const KILL_BOUND: Duration = Duration::from_secs(30);

/// The folder of a cluster below each hierarchy.
#[must_use]
pub(crate) fn cluster_group(cluster: &str) -> String {
    format!("towpath.{cluster}")
}

/// The folder of one node, which is its kubelet's `cgroupRoot`.
#[must_use]
pub(crate) fn node_group(cluster: &str, node: &str) -> String {
    format!("{}/{node}", cluster_group(cluster))
}

/// Creates `group` in every hierarchy.
///
/// # Errors
/// When a folder cannot be created: usually because the harness does not run as root.
pub(crate) fn create(group: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut dir = hierarchy.clone();
        for part in group.split('/') {
            let parent = dir.clone();
            dir.push(part);
            fs::create_dir_all(&dir).with_context(|| format!("create control group {}", dir.display()))?;
            inherit_cpus(&parent, &dir)?;
        }
    }
    Ok(())
}

/// Puts this process into the record, as a member of `group`. Version 2 allows no processes beside groups that have
/// controllers, so programs always go to a group of their own below a cluster's or a node's.
///
/// # Errors
/// When the kernel rejects it.
pub(crate) fn join(group: &str) -> Result<()> {
    let dir = tracking()?.join(group);
    fs::create_dir_all(&dir).with_context(|| format!("create control group {}", dir.display()))?;
    let members = dir.join("cgroup.procs");
    fs::write(&members, std::process::id().to_string()).with_context(|| format!("join {}", members.display()))
}

/// Kills every process of `group` by its pid, and waits until all have ended.
///
/// # Errors
/// When a process still runs after 30 s.
pub(crate) fn kill_all(group: &str) -> Result<()> {
    let dir = tracking()?.join(group);
    wait_for(&format!("the processes of {group} to end"), KILL_BOUND, || {
        let pids = members(&dir);
        for pid in &pids {
            // It may have ended by itself since it was listed; then there is nothing to do.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        Ok(pids.is_empty().then_some(()))
    })
}

/// Removes `group` from every hierarchy.
///
/// # Errors
/// When a folder stays in use.
pub(crate) fn remove(group: &str) -> Result<()> {
    for dir in present(group)? {
        wait_for(&format!("control group {} to be removed", dir.display()), KILL_BOUND, || {
            remove_tree(&dir);
            Ok((!dir.exists()).then_some(()))
        })?;
    }
    Ok(())
}

/// Folders of `group` that exist.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub(crate) fn present(group: &str) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?.into_iter().map(|hierarchy| hierarchy.join(group)).filter(|dir| dir.exists()).collect())
}

/// The pids in the record of a cluster, its nodes' and pods' included.
///
/// # Errors
/// When the hierarchies cannot be listed.
pub(crate) fn pids(cluster: &str) -> Result<Vec<i32>> {
    Ok(members(&tracking()?.join(cluster_group(cluster))))
}

/// The hierarchy that serves as the record: version 2 where there is one, because nothing limits there.
fn tracking() -> Result<PathBuf> {
    let all = hierarchies()?;
    let version_2 = all.iter().find(|dir| dir.join("cgroup.controllers").exists());
    version_2.or_else(|| all.first()).cloned().with_context(|| format!("no control groups are mounted below {ROOT}"))
}

/// Every mounted hierarchy: one on a machine with version 2 only, one per controller otherwise.
fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = PathBuf::from(ROOT);
    if root.join("cgroup.procs").exists() {
        return Ok(vec![root]);
    }
    let mut found: Vec<PathBuf> = fs::read_dir(&root)
        .with_context(|| format!("list {ROOT}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        // Links such as cpu,cpuacct name the same hierarchy twice.
        .filter(|path| !path.is_symlink() && path.join("cgroup.procs").exists())
        .collect();
    found.sort();
    Ok(found)
}

/// A version 1 cpuset starts empty, and nothing may enter an empty one.
fn inherit_cpus(parent: &Path, dir: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(file), dir.join(file));
        if from.exists() && !dir.join("cgroup.controllers").exists() {
            let value = fs::read_to_string(&from).with_context(|| format!("read {}", from.display()))?;
            fs::write(&to, value.trim()).with_context(|| format!("write {}", to.display()))?;
        }
    }
    Ok(())
}

fn members(dir: &Path) -> Vec<i32> {
    let own = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    // A pid of 0 is a process outside of this PID namespace, which is not ours to count.
    let mut pids: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for child in children(dir) {
        pids.extend(members(&child));
    }
    pids
}

fn remove_tree(dir: &Path) {
    for child in children(dir) {
        remove_tree(&child);
    }
    // A folder that is still in use is tried again by the caller until its bound.
    let _ = fs::remove_dir(dir);
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_dir()).collect()
}
