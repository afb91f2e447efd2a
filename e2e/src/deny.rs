//! Checks licences, sources and bans of the dependencies with cargo-deny, which is built once into the cache.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::progress::Progress;
use crate::run;
use crate::site::Site;
use crate::toolchain::once;

/// Version of cargo-deny that is built.
const VERSION: &str = "0.20.2";
/// cargo-deny's configuration, below the checkout's root.
const CONFIG: &str = ".ci/deny.toml";

/// Checks bans, licences and sources of the dependencies. cargo-deny prints what it finds on standard error.
///
/// # Errors
/// When cargo-deny cannot be built, a crate cannot be downloaded, or cargo-deny finds something.
pub fn check(site: &Site, progress: &Progress) -> Result<()> {
    let dir = once(site, &format!("cargo-deny-{VERSION}"), progress, |dir| {
        progress.step(format!("building cargo-deny {VERSION}, once: about 5 minutes"));
        let mut command = Command::new("cargo");
        // Set, it would keep the build's leftovers in the user's own target folder.
        command.env_remove("CARGO_TARGET_DIR");
        command.args(["install", "cargo-deny", "--locked", "--version", VERSION, "--root"]).arg(dir);
        run::logged(&mut command, "cargo-deny", &site.target().join("log/build-cargo-deny.log"), progress)
    })?;
    // cargo-deny reads the manifests of every target's crates. A build on Linux has downloaded those of Linux only.
    run::output(Command::new("cargo").current_dir(site.root()).args(["fetch", "--locked"]))
        .context("download the crates of all targets")?;
    // The advisory database is not part of the check: it would have to be downloaded each time.
    let mut command = Command::new(dir.join("bin/cargo-deny"));
    command.current_dir(site.root()).args(["--config", CONFIG, "--log-level", "warn", "--offline", "check"]);
    let status = command.args(["bans", "licenses", "sources"]).status().context("start cargo-deny")?;
    ensure!(status.success(), "the dependencies do not pass {CONFIG}");
    Ok(())
}
