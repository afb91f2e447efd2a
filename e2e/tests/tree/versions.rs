//! The version of Rust that is declared is the one that CI builds with.

use crate::{file, packages};

/// How the workflow finds the version: the same words as in [`declared`].
const READ: &str = r#"sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml"#;

fn declared() -> String {
    let manifest = file("Cargo.toml");
    let version = manifest.lines().find_map(|line| line.strip_prefix("rust-version = \"")?.strip_suffix('"'));
    version.expect("the workspace declares rust-version").to_owned()
}

#[test]
fn every_crate_declares_the_version_of_the_workspace() {
    let declared = declared();
    for package in packages() {
        assert_eq!(package.rust_version, declared, "{}: rust-version.workspace = true", package.name);
    }
}

#[test]
fn ci_builds_with_the_declared_version() {
    let (workflow, local) = (file(".github/workflows/ci.yml"), file(".ci/run"));
    assert!(workflow.contains(READ), "ci.yml reads the version from Cargo.toml: {READ}");
    assert!(local.contains(READ), ".ci/run compares the compiler with it: {READ}");
    let toolchains = workflow.matches("rustup toolchain install").count();
    let declared = workflow.matches("rustup toolchain install \"$version\"").count();
    assert_eq!(toolchains, declared, "ci.yml installs no other toolchain");
}

#[test]
fn the_readme_names_the_declared_version() {
    let row = format!("| Build | Rust {} or later", declared());
    assert!(file("README.md").contains(&row), "README.md, Versions: {row}");
}
