//! Golden files of complete tables in nft syntax. `UPDATE=1 cargo test -p towpath-core --test golden` rewrites them; kernel
//! tests load them.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

use std::{env, fs, net::IpAddr, path::Path, sync::Arc};

use imbl::{OrdMap, OrdSet};
use ipnet::IpNet;
use towpath_core::{
    model::{Endpoint, PodId},
    names::{ChainName, Comment, IfName, SetName},
    ruleset::{Chain, CmpOp, Comments, Field, KeyType, Lookup, Match, Rule, Set, Transaction, Value, Verdict},
    table::{CompiledPolicy, Masquerade, PolicyEnforcement, SourceToNodes, TableInput, table},
};

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn endpoints(pods: &[(&str, &[&str])]) -> OrdMap<IfName, Arc<Endpoint>> {
    let endpoint = |(name, addresses): &(&str, &[&str])| {
        let interface = IfName::of_pod("default", name);
        let pod = PodId { namespace: "default".to_owned(), name: (*name).to_owned() };
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        (interface.clone(), Arc::new(Endpoint { pod, interface, addresses }))
    };
    pods.iter().map(endpoint).collect()
}

fn addresses(texts: &[&str]) -> OrdSet<IpAddr> {
    texts.iter().map(|text| text.parse::<IpAddr>().unwrap()).collect()
}

/// The compiled policy of `default/web`: allows TCP port 80 from one address.
fn one_policy() -> CompiledPolicy {
    let set = SetName::new("peers.0123456789").unwrap();
    let chain = ChainName::new("in.0123456789").unwrap();
    let client = vec![Value::Addr("10.244.2.9".parse().unwrap()), Value::Proto(6), Value::Port(80)];
    let key = vec![KeyType::Ipv4, KeyType::Proto, KeyType::Port];
    let elements = OrdSet::unit(client);
    let fields = vec![Field::Source(towpath_core::model::Family::V4), Field::Proto, Field::DestinationPort];
    let rules = vec![
        Rule::verdict(vec![Match::InSet(fields, CmpOp::Eq, set.clone())], Verdict::Accept),
        Rule::verdict(Vec::new(), Verdict::Drop),
    ];
    CompiledPolicy {
        comments: Comments {
            chains: OrdMap::unit(chain.clone(), Comment::new("ingress of default/web")),
            sets: OrdMap::unit(set.clone(), Comment::new("peers: pods all of namespace 'default' port 6/80")),
        },
        sets: OrdMap::unit(set, Set { key, lookup: Lookup::Hash, elements }),
        chains: OrdMap::unit(chain.clone(), Arc::new(Chain { base: None, rules })),
        ingress: OrdMap::unit(IfName::of_pod("default", "web"), chain),
        egress: OrdMap::new(),
    }
}

#[test]
fn a_dual_stack_node_with_a_policy() {
    let pods =
        endpoints(&[("client", &["10.244.1.2", "fd00:10:244:1::2"]), ("web", &["10.244.1.3", "fd00:10:244:1::3"])]);
    let input = TableInput {
        endpoints: &pods,
        cluster_pod_cidrs: &nets(&["10.244.0.0/16", "fd00:10:244::/48"]),
        node_pod_cidrs: &nets(&["10.244.1.0/24", "fd00:10:244:1::/64"]),
        node_addresses: &addresses(&["172.30.0.11", "172.30.0.12", "fd00:172:30::11", "fd00:172:30::12"]),
        vxlan_port: 8472,
        masquerade: Masquerade::Enabled {
            non_masquerade_cidrs: nets(&["192.168.0.0/16", "192.168.4.0/24", "198.51.100.7/32"]),
        },
        source_to_nodes: SourceToNodes::NodeAddress,
        policy: PolicyEnforcement::Enforce(one_policy()),
    };
    golden("dual_stack_policy", input);
}

#[test]
fn a_node_without_masquerade_and_policy() {
    let pods = endpoints(&[("web", &["10.244.1.3"])]);
    let input = TableInput {
        endpoints: &pods,
        cluster_pod_cidrs: &nets(&["10.244.0.0/16"]),
        node_pod_cidrs: &nets(&["10.244.1.0/24"]),
        node_addresses: &addresses(&["172.30.0.11"]),
        vxlan_port: 4789,
        masquerade: Masquerade::Disabled,
        source_to_nodes: SourceToNodes::NodeAddress,
        policy: PolicyEnforcement::Off,
    };
    golden("plain", input);
}

#[test]
fn a_node_without_pods_with_direct_routing() {
    let input = TableInput {
        endpoints: &OrdMap::new(),
        cluster_pod_cidrs: &nets(&["10.244.0.0/16"]),
        node_pod_cidrs: &nets(&["10.244.1.0/24"]),
        node_addresses: &addresses(&["172.30.0.11", "172.30.0.12"]),
        vxlan_port: 8472,
        masquerade: Masquerade::Enabled { non_masquerade_cidrs: Vec::new() },
        source_to_nodes: SourceToNodes::PodAddress,
        policy: PolicyEnforcement::Enforce(CompiledPolicy::default()),
    };
    golden("empty_direct", input);
}

fn golden(name: &str, input: TableInput<'_>) {
    let rendered = Transaction::create(&table(input)).to_string();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.nft"));
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, &rendered).unwrap();
    }
    let expected = fs::read_to_string(&file).unwrap();
    assert_eq!(rendered, expected, "{name}.nft differs: review the difference, then run the test with UPDATE=1");
}
