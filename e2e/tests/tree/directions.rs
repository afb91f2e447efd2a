//! Which crate may depend on which, checked against what cargo resolves.

use std::collections::BTreeSet;

use crate::{cargo, packages};

/// What a crate may and must not have among its dependencies, direct and indirect.
struct Rule {
    package: &'static str,
    /// Crates of ours that it may use.
    may: &'static [&'static str],
    /// Crates of others that it must do without.
    never: &'static [&'static str],
    /// Crates of others that it is built on.
    must: &'static [&'static str],
}

const KUBERNETES: [&str; 2] = ["kube-core", "k8s-openapi"];

const RULES: &[Rule] = &[
    Rule {
        package: "towpath-core",
        may: &[],
        never: &["tokio", "kube", "k8s-openapi", "nix", "netlink-sys", "serde_json", "serde_yaml"],
        must: &[],
    },
    Rule {
        package: "towpath-crds",
        may: &[],
        never: &["tokio", "kube-client", "kube-runtime", "hyper", "rustls"],
        must: &[],
    },
    Rule {
        package: "towpath-index",
        may: &["towpath-core", "towpath-crds"],
        never: &["tokio", "kube-client", "kube-runtime", "hyper", "nix", "tracing"],
        must: &["k8s-openapi"],
    },
    Rule {
        package: "towpath-node",
        may: &["towpath-core", "towpath-crds", "towpath-index"],
        never: &["tokio", "kube-client", "kube-runtime", "hyper", "nix", "tracing"],
        must: &[],
    },
    Rule {
        package: "towpath-local",
        may: &["towpath-core"],
        never: &["tokio", "netlink-sys", "netlink-packet-core", "netlink-packet-route", KUBERNETES[0], KUBERNETES[1]],
        must: &[],
    },
    Rule {
        package: "towpath-podlink",
        may: &["towpath-core"],
        never: &[
            "tokio",
            "serde_json",
            "futures-util",
            "rtnetlink",
            "netlink-packet-netfilter",
            KUBERNETES[0],
            KUBERNETES[1],
        ],
        must: &["netlink-packet-route"],
    },
    Rule {
        package: "towpath-dataplane",
        may: &["towpath-core", "towpath-podlink"],
        never: &[KUBERNETES[0], KUBERNETES[1]],
        must: &["rtnetlink"],
    },
    Rule {
        package: "towpath-cni",
        may: &["towpath-core", "towpath-local", "towpath-podlink"],
        never: &["tokio", "rtnetlink", "nftables", "netlink-packet-netfilter", KUBERNETES[0], KUBERNETES[1]],
        must: &[],
    },
    Rule {
        package: "towpath-agent",
        may: &[
            "towpath-core",
            "towpath-crds",
            "towpath-dataplane",
            "towpath-index",
            "towpath-local",
            "towpath-node",
            "towpath-podlink",
        ],
        never: &[],
        must: &["rtnetlink", "nftables"],
    },
    Rule {
        package: "towpath-operator",
        may: &["towpath-crds"],
        never: &["nix", "netlink-sys"],
        must: &["kube-client"],
    },
    Rule { package: "towpath-e2e", may: &[], never: &["tokio"], must: &[] },
];

/// Names of all dependencies of a package, of builds and tests left out.
fn resolved(package: &str) -> BTreeSet<String> {
    let tree = ["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--package", package];
    // The first line is the package itself.
    cargo(&tree).lines().skip(1).filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn a_crate_uses_only_the_crates_of_ours_that_it_may() {
    for Rule { package, may, .. } in RULES {
        let ours: Vec<String> = resolved(package).into_iter().filter(|name| name.starts_with("towpath-")).collect();
        let over: Vec<&String> = ours.iter().filter(|name| !may.contains(&name.as_str())).collect();
        assert!(over.is_empty(), "{package} may use {may:?} and also uses {over:?}");
    }
}

#[test]
fn a_crate_does_without_what_is_on_the_other_side_of_its_boundary() {
    for Rule { package, never, .. } in RULES {
        let all = resolved(package);
        let inside: Vec<&&str> = never.iter().filter(|name| all.contains(**name)).collect();
        assert!(
            inside.is_empty(),
            "{package} must do without {inside:?}: cargo tree -p {package} -i NAME shows the way in"
        );
    }
}

#[test]
fn a_crate_is_built_on_what_was_decided() {
    for Rule { package, must, .. } in RULES {
        let all = resolved(package);
        let missing: Vec<&&str> = must.iter().filter(|name| !all.contains(**name)).collect();
        assert!(missing.is_empty(), "{package} no longer depends on {missing:?}: see agent/decisions");
    }
}

#[test]
fn every_crate_of_the_workspace_has_a_rule() {
    let have: BTreeSet<&str> = RULES.iter().map(|rule| rule.package).collect();
    let want: BTreeSet<&str> = packages().iter().map(|package| package.name.as_str()).collect();
    assert_eq!(have, want);
}
