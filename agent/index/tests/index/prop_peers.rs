//! Nodes that come, change and go, and claim what others claim: sorted step by step they are sorted as from nothing.

use proptest::{collection::vec, option::weighted, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use towpath_core::model::{NodeName, Vni};
use towpath_index::{Index, PeerResolver};

use crate::objects::{list, me, object};

const NAMES: [&str; 6] = ["me", "a", "b", "c", "d", "e"];

#[derive(Debug, Clone)]
struct Step {
    name: &'static str,
    /// `None`: it goes.
    node: Option<Value>,
    look: Look,
}

/// Whether the nodes are sorted before the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    Now,
    Later,
}

/// Ranges that are the same, overlap, lie beside each other, or outside of the pod network.
fn cidrs(v6: bool) -> impl Strategy<Value = Option<&'static str>> {
    let v4 = ["10.244.0.0/24", "10.244.1.0/24", "10.244.0.0/23", "10.244.0.128/25", "10.244.0.0/16", "10.99.0.0/24"];
    let six = ["fd00::/64", "fd00:0:0:1::/64", "fd00::/63", "fd00::8000:0:0:0/65", "fd00::/48", "fd99::/64"];
    weighted(0.9, select(Vec::from(if v6 { six } else { v4 })))
}

/// What a node publishes of a family; four of each to choose from.
fn published(v6: bool) -> impl Strategy<Value = Vec<(String, String)>> {
    let vni = select([r#""VNI":1,"#, r#""VNI":1,"#, r#""VNI":7,"#, ""].as_slice());
    let (data, ip) = if v6 { ("backend-v6-data", "public-ipv6") } else { ("backend-data", "public-ip") };
    (0..4u8, 0..5u8, vni, weighted(0.9, Just(()))).prop_map(move |(host, mac, vni, there)| {
        let address = if v6 { format!("2001:db8::{host}") } else { format!("172.30.0.{host}") };
        let backend = if mac == 4 { "broken".into() } else { format!(r#"{{{vni}"VtepMAC":"02:00:00:00:00:0{mac}"}}"#) };
        there.map_or_else(Vec::new, |()| vec![(data.to_owned(), backend), (ip.to_owned(), address)])
    })
}

fn node() -> impl Strategy<Value = Value> {
    let spec = (cidrs(false), cidrs(true));
    let age = weighted(0.8, 0..3u8);
    (spec, age, published(false), published(true), 0..4u8).prop_map(
        |((v4, v6), age, mut annotations, more, internal)| {
            annotations.extend(more);
            annotations.push(("backend-type".to_owned(), "vxlan".to_owned()));
            let annotations: Map<String, Value> =
                annotations.into_iter().map(|(k, v)| (format!("flannel.alpha.coreos.com/{k}"), v.into())).collect();
            let cidrs: Vec<&str> = v4.into_iter().chain(v6).chain((internal == 0).then_some("nonsense")).collect();
            json!({
                "kind": "Node",
                "metadata": {
                    "creationTimestamp": age.map(|n| format!("2026-01-01T00:00:0{n}Z")),
                    "annotations": annotations,
                },
                "spec": { "podCIDRs": cidrs },
                "status": { "addresses": [{ "type": "InternalIP", "address": format!("172.30.0.{internal}") }] },
            })
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let look = prop_oneof![2 => Just(Look::Now), 1 => Just(Look::Later)];
    (select(NAMES.as_slice()), weighted(0.75, node()), look).prop_map(|(name, mut node, look)| {
        if let Some(node) = &mut node {
            node["metadata"]["name"] = json!(name);
        }
        Step { name, node, look }
    })
}

fn sorter() -> PeerResolver {
    let networks = ["10.244.0.0/16", "fd00::/48"].map(|net| net.parse().unwrap());
    PeerResolver::new(me(), &networks, Vni::new(1).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nodes_are_sorted_alike_whatever_the_way_to_them(steps in vec(step(), 1..40)) {
        let mut index = Index::new(me());
        let _ = list(&mut index, []);
        let mut kept = sorter();
        for Step { name, node, look } in steps {
            let _ = match node {
                Some(node) => index.apply(object(node).applied()),
                None => index.apply(object(json!({ "kind": "Node", "metadata": { "name": name } })).deleted()),
            };
            if look == Look::Later {
                continue;
            }
            let nodes = index.nodes().unwrap();
            kept.update(nodes);
            let mut fresh = sorter();
            fresh.update(nodes);
            prop_assert_eq!(kept.view(), fresh.view());
            prop_assert_eq!(kept.underlay(), fresh.underlay());
            for view in kept.view().families.values() {
                let lots = |name: &NodeName| {
                    [view.peers.contains_key(name), view.skipped.contains_key(name), view.waiting.contains(name)]
                };
                for name in nodes.keys().filter(|name| **name != me()) {
                    prop_assert_eq!(lots(name).into_iter().filter(|is| *is).count(), 1, "every node has one lot");
                }
            }
        }
    }
}
