//! `make unit`: every test that needs neither root nor a cluster.
//!
//! These are the tests of libraries and programs, the examples in documentation, and the integration tests that are not
//! named otherwise: one that needs root is named `netns_*`, the one that needs clusters is named `scenarios`.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;
use crate::site::Site;

/// How the name of an integration test begins that needs root, because it makes network namespaces.
pub const NEEDS_ROOT: &str = "netns_";
/// The integration test that needs the embedded cluster.
pub const NEEDS_CLUSTER: &str = "scenarios";

/// Whether an integration test of this name runs without root and without a cluster.
#[must_use]
pub fn needs_nothing(test: &str) -> bool {
    !test.starts_with(NEEDS_ROOT) && test != NEEDS_CLUSTER
}

/// Builds and runs the tests, and those in documentation after them.
///
/// # Errors
/// When a test does not build or fails; cargo has printed which one.
pub fn run(site: &Site) -> Result<()> {
    let tests = integration_tests(site)?;
    let named = tests.iter().flat_map(|test| ["--test", test]);
    cargo(site, ["--lib", "--bins"].into_iter().chain(named))?;
    cargo(site, ["--doc"])
}

/// Names of the integration tests of the workspace that need nothing.
fn integration_tests(site: &Site) -> Result<Vec<String>> {
    let metadata = run::cargo_metadata(site)?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let targets = packages.iter().filter_map(|package| package["targets"].as_array()).flatten();
    let tests = targets.filter(|target| target["kind"][0] == "test").filter_map(|target| target["name"].as_str());
    Ok(tests.filter(|name| needs_nothing(name)).map(str::to_owned).collect())
}

fn cargo<'a>(site: &Site, words: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut command = Command::new("cargo");
    command.current_dir(site.root()).args(["test", "--locked", "--workspace", "--no-fail-fast"]).args(words);
    let status = command.status().context("start cargo test")?;
    ensure!(status.success(), "cargo test ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_test_tells_what_it_needs() {
        for (name, nothing, why) in [
            ("golden", true, "compares text"),
            ("netns_nft", false, "makes a network namespace"),
            ("scenarios", false, "starts clusters"),
            ("prop_netns_names", true, "the prefix counts, not the word"),
        ] {
            assert_eq!(needs_nothing(name), nothing, "{name}: {why}");
        }
    }
}
