//! Names of test targets tell what a test needs. `make unit` selects by them.

use std::path::Path;

use towpath_e2e::unit;

use crate::{Target, files, packages, read, relative};

/// Signs of a test that makes namespaces, for which it needs root.
const SIGNS: [&str; 3] = ["CLONE_NEWNET", "unshare(", "setns("];

/// The files of a test target: one file with the modules that it names, or a folder.
fn sources(target: &Target) -> Vec<String> {
    let folder = target.source.parent().expect("a source is in a folder");
    if target.source.file_name().is_some_and(|name| name == "main.rs") {
        return files(folder).iter().map(|file| read(file)).collect();
    }
    let own = read(&target.source);
    let shared = |line: &str| Some(folder.join(line.strip_prefix("mod ")?.strip_suffix(';')?));
    let mut all: Vec<String> = own.lines().filter_map(shared).filter(|dir| dir.is_dir()).flat_map(texts).collect();
    all.push(own);
    all
}

fn texts(dir: impl AsRef<Path>) -> Vec<String> {
    files(dir.as_ref()).iter().map(|file| read(file)).collect()
}

#[test]
fn a_test_that_makes_namespaces_is_named_netns_or_scenarios() {
    let tests = packages().iter().flat_map(|package| &package.targets).filter(|target| target.kind == "test");
    // This test has the signs in its own source.
    let unit = tests.filter(|target| unit::needs_nothing(&target.name) && target.name != env!("CARGO_CRATE_NAME"));
    let wrong: Vec<String> = unit
        .filter(|target| sources(target).iter().any(|text| SIGNS.iter().any(|sign| text.contains(sign))))
        .map(|target| relative(&target.source))
        .collect();
    assert!(wrong.is_empty(), "tests that need root are named {}*: {wrong:#?}", unit::NEEDS_ROOT);
}
