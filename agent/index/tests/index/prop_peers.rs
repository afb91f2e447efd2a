//! Incremental conflict resolution gives the same peers as a new resolver, after any sequence of Node changes.

use proptest::{collection::vec, option::weighted, prelude::*, sample::select};
use serde_json::{Map, Value, json};
use towpath_core::model::{NodeName, Vni};
use towpath_index::{Index, PeerResolver};

use crate::objects::{list, me, object};

const NAMES: [&str; 6] = ["me", "a", "b", "c", "d", "e"];

#[derive(Debug, Clone)]
struct Step {
    name: &'static str,
    /// `None`: the Node is deleted.
    node: Option<Value>,
    update: Update,
}

/// Whether the peers are updated before the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Update {
    Now,
    Later,
}

/// podCIDRs that are equal, overlap, are adjacent, or are outside the pod network.
fn cidrs(v6: bool) -> impl Strategy<Value = Option<&'static str>> {
    let v4 = ["10.244.0.0/24", "10.244.1.0/24", "10.244.0.0/23", "10.244.0.128/25", "10.244.0.0/16", "10.99.0.0/24"];
    let six = ["fd00::/64", "fd00:0:0:1::/64", "fd00::/63", "fd00::8000:0:0:0/65", "fd00::/48", "fd99::/64"];
    weighted(0.9, select(Vec::from(if v6 { six } else { v4 })))
}

/// The annotations of a family, with four different addresses and MACs.
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
    let update = prop_oneof![2 => Just(Update::Now), 1 => Just(Update::Later)];
    (select(NAMES.as_slice()), weighted(0.75, node()), update).prop_map(|(name, mut node, update)| {
        if let Some(node) = &mut node {
            node["metadata"]["name"] = json!(name);
        }
        Step { name, node, update }
    })
}

fn resolver() -> PeerResolver {
    let networks = ["10.244.0.0/16", "fd00::/48"].map(|net| net.parse().unwrap());
    PeerResolver::new(me(), &networks, Vni::new(1).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn incremental_updates_give_the_peers_of_a_new_resolver(steps in vec(step(), 1..40)) {
        let mut index = Index::new(me());
        let _ = list(&mut index, []);
        let mut incremental = resolver();
        for Step { name, node, update } in steps {
            let _ = match node {
                Some(node) => index.apply(object(node).applied()),
                None => index.apply(object(json!({ "kind": "Node", "metadata": { "name": name } })).deleted()),
            };
            if update == Update::Later {
                continue;
            }
            let nodes = index.nodes().unwrap();
            incremental.update(nodes);
            let mut fresh = resolver();
            fresh.update(nodes);
            prop_assert_eq!(incremental.view(), fresh.view());
            prop_assert_eq!(incremental.underlay(), fresh.underlay());
            for view in incremental.view().families.values() {
                let lists = |name: &NodeName| {
                    [view.peers.contains_key(name), view.skipped.contains_key(name), view.waiting.contains(name)]
                };
                for name in nodes.keys().filter(|name| **name != me()) {
                    prop_assert_eq!(lists(name).into_iter().filter(|is| *is).count(), 1, "every node is in one list");
                }
            }
        }
    }
}
