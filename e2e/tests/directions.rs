//! Who may depend on whom: the walls of the house, checked against what cargo resolves.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// A crate, those of ours that it may use, and what must not come in through any of its dependencies.
const WALLS: &[(&str, &[&str], &[&str])] = &[
    ("towpath-core", &[], &["tokio", "kube", "k8s-openapi", "nix", "netlink-sys", "serde_json", "serde_yaml"]),
    ("towpath-crds", &[], &["tokio", "kube-client", "kube-runtime", "hyper", "rustls"]),
    ("towpath-index", &["towpath-core", "towpath-crds"], &["tokio", "kube-client", "kube-runtime", "hyper", "nix"]),
    ("towpath-local", &["towpath-core"], &["tokio", "netlink-sys", "netlink-packet-core", "kube", "k8s-openapi"]),
    ("towpath-podlink", &["towpath-core"], &["tokio", "kube", "kube-core", "k8s-openapi", "serde_json"]),
    ("towpath-dataplane", &["towpath-core", "towpath-podlink"], &["kube", "kube-core", "k8s-openapi"]),
    (
        "towpath-cni",
        &["towpath-core", "towpath-local", "towpath-podlink"],
        &["tokio", "netlink-packet-netfilter", "kube", "kube-core", "k8s-openapi"],
    ),
    (
        "towpath-agent",
        &["towpath-core", "towpath-crds", "towpath-index", "towpath-local", "towpath-podlink", "towpath-dataplane"],
        &[],
    ),
    ("towpath-operator", &["towpath-crds"], &["nix", "netlink-sys"]),
    ("towpath-e2e", &[], &["tokio"]),
];

fn resolved(package: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace");
    let mut command = Command::new(env!("CARGO"));
    let out = command
        .current_dir(root)
        .args(["tree", "--locked", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .output()
        .expect("cargo starts");
    assert!(out.status.success(), "cargo tree -p {package}: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).expect("cargo prints text");
    // The first line is the crate itself.
    text.lines().skip(1).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn every_crate_uses_only_the_crates_of_ours_that_it_may() {
    for (package, allowed, _) in WALLS {
        let ours: Vec<String> = resolved(package).into_iter().filter(|name| name.starts_with("towpath-")).collect();
        let over: Vec<&String> = ours.iter().filter(|name| !allowed.contains(&name.as_str())).collect();
        assert!(over.is_empty(), "{package} may use {allowed:?} and uses {over:?} too");
    }
}

#[test]
fn nothing_comes_in_that_a_crate_must_not_know() {
    for (package, _, banned) in WALLS {
        let all = resolved(package);
        let inside: Vec<&&str> = banned.iter().filter(|name| all.contains(**name)).collect();
        assert!(
            inside.is_empty(),
            "{package} must not know {inside:?}: cargo tree -p {package} -i NAME shows the way in"
        );
    }
}

#[test]
fn every_crate_of_the_workspace_stands_in_the_table() {
    let manifest = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml")).unwrap();
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    assert_eq!(members.matches('"').count() / 2, WALLS.len(), "{members}");
}
