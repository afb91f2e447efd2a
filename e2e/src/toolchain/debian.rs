//! Debian packages.

use std::process::Command;

use anyhow::{Context, Result};

use super::lock;
use crate::progress::Progress;
use crate::run;

/// Packages that a cluster needs.
pub(super) const CLUSTER: &[&str] = &[
    "busybox-static",
    "containerd",
    "containernetworking-plugins",
    "gcc",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "libc6-dev",
    "nftables",
    "runc",
    "util-linux",
];

/// Installs the missing ones of `packages`, and prints their names.
///
/// # Errors
/// When apt fails: the message has its output.
pub fn require(packages: &[&str], progress: &Progress) -> Result<()> {
    if missing(packages)?.is_empty() {
        return Ok(());
    }
    // apt's own locks do not cover all that it does.
    let _one_at_a_time = lock(&std::env::temp_dir().join("towpath-apt.lock"), "Debian packages", progress)?;
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    progress.step(format!("installing Debian packages: {}", missing.join(" ")));
    run::output(&mut apt(&["update"])).context("refresh the lists of packages")?;
    let mut words = vec!["install", "--yes", "--no-install-recommends"];
    words.extend(missing);
    run::output(&mut apt(&words)).context("install Debian packages (needs root)").map(drop)
}

fn missing<'a>(packages: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status} ${Package}\n"]).args(packages);
    // It fails if a package is unknown, and lists the others nevertheless.
    let said = String::from_utf8_lossy(&run::raw_output(&mut query)?.stdout).into_owned();
    Ok(packages
        .iter()
        .filter(|package| !said.lines().any(|line| line == format!("installed {package}")))
        .copied()
        .collect())
}

fn apt(words: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--quiet", "--option", "DPkg::Lock::Timeout=300"])
        .args(words);
    command
}
