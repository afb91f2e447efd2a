//! cargo-deny, built once into the cache: licences, sources and bans of the dependencies.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::progress::Progress;
use crate::run;
use crate::site::Site;
use crate::toolchain::once;

/// Version of cargo-deny.
const VERSION: &str = "0.20.2";
const CONFIG: &str = ".ci/deny.toml";

/// Checks the dependencies; what is wrong is told on standard error.
///
/// # Errors
/// When cargo-deny cannot be built, or finds something.
pub fn check(site: &Site, progress: &Progress) -> Result<()> {
    let dir = once(site, &format!("cargo-deny-{VERSION}"), progress, |dir| {
        progress.say(format!("building cargo-deny {VERSION}, once: about 5 minutes"));
        let mut command = Command::new("cargo");
        // Set, it would keep the build's leftovers in the user's own target folder.
        command.env_remove("CARGO_TARGET_DIR");
        command.args(["install", "cargo-deny", "--locked", "--version", VERSION, "--root"]).arg(dir);
        run::logged(&mut command, "cargo-deny", &site.target().join("log/build-cargo-deny.log"), progress)
    })?;
    // The database of advisories would have to be fetched from outside; the three other checks need nothing.
    let mut command = Command::new(dir.join("bin/cargo-deny"));
    command.current_dir(site.root()).args(["--config", CONFIG, "--log-level", "warn", "--offline", "check"]);
    let status = command.args(["bans", "licenses", "sources"]).status().context("start cargo-deny")?;
    ensure!(status.success(), "the dependencies do not pass {CONFIG}");
    Ok(())
}
