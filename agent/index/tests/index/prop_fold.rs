//! The same final objects give the same results, whatever the events were and in whatever order they arrived.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*};
use serde_json::{Value, json};
use towpath_core::{
    model::{Endpoint, PodId},
    names::IfName,
};
use towpath_index::{Index, ObjectChange};

use crate::objects::{list, me, object, of_every_kind};

/// An event of the watches or of the local endpoints.
#[derive(Debug, Clone)]
enum Step {
    /// An object is applied. Kind and name identify it, the number selects its content.
    Apply(usize, usize, u8),
    Delete(usize, usize),
    /// An undecodable object is applied.
    Undecodable(usize, usize),
    /// The pod of this number gets an endpoint.
    Attach(usize, u8),
    Detach(usize),
    /// The watches fail, and everything is listed again.
    Relist,
    /// A list is interrupted. The objects it has returned take effect.
    InterruptedList,
}

const KINDS: usize = 4;
const NAMES: usize = 3;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..KINDS, 0..NAMES, 0_u8..4).prop_map(|(kind, name, n)| Step::Apply(kind, name, n)),
        3 => (0..KINDS, 0..NAMES).prop_map(|(kind, name)| Step::Delete(kind, name)),
        1 => (0..KINDS, 0..NAMES).prop_map(|(kind, name)| Step::Undecodable(kind, name)),
        2 => (0..NAMES, 0_u8..3).prop_map(|(pod, n)| Step::Attach(pod, n)),
        1 => (0..NAMES).prop_map(Step::Detach),
        1 => Just(Step::Relist),
        1 => Just(Step::InterruptedList),
    ];
    vec(step, 0..40)
}

fn content(kind: usize, name: usize, n: u8) -> Value {
    let names = ["me", "x", "y"];
    match kind {
        0 => json!({
            "kind": "Node",
            "metadata": { "name": names[name], "annotations": {
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data":
                    if n == 3 { "broken".to_owned() } else { format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:00:00:0{n}"}}"#) },
                "flannel.alpha.coreos.com/public-ip": format!("172.30.0.{}", n + 1),
            } },
            "spec": { "podCIDRs": [format!("10.244.{n}.0/24")] },
        }),
        1 => json!({
            "kind": "Pod",
            "metadata": { "namespace": "a", "name": names[name], "labels": { "n": n.to_string() } },
            "spec": { "containers": [], "hostNetwork": n == 2 },
            "status": { "phase": if n == 3 { "Succeeded" } else { "Running" }, "podIP": format!("10.244.0.{n}") },
        }),
        2 => json!({ "kind": "Namespace", "metadata": { "name": names[name], "labels": { "n": n.to_string() } } }),
        _ => json!({
            "kind": "NetworkPolicy",
            "metadata": { "namespace": "a", "name": names[name] },
            "spec": { "podSelector": {}, "ingress": [{ "ports": [{ "port": n }] }] },
        }),
    }
}

fn endpoint(pod: usize, n: u8) -> Endpoint {
    let pod = PodId { namespace: "a".to_owned(), name: ["me", "x", "y"][pod].to_owned() };
    let interface = IfName::of_pod(&pod.namespace, &pod.name);
    Endpoint { pod, interface, addresses: vec![format!("10.244.1.{n}").parse().unwrap()] }
}

/// All results of an index.
fn results(index: &Index) -> String {
    let rejected: Vec<_> = index.rejected().collect();
    format!(
        "{:#?} {:#?} {:#?} {:#?} {rejected:#?}",
        index.snapshot(),
        index.nodes(),
        index.own_node(),
        index.endpoints(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_same_final_objects_give_the_same_results_in_any_order(steps in steps()) {
        let mut index = Index::new(me());
        let _ = list(&mut index, []);
        let mut objects: BTreeMap<(usize, usize), Value> = BTreeMap::new();
        let mut endpoints: BTreeMap<usize, Endpoint> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Apply(kind, name, n) => {
                    let json = content(kind, name, n);
                    objects.insert((kind, name), json.clone());
                    let _ = index.apply(object(json).applied());
                }
                Step::Delete(kind, name) => {
                    objects.remove(&(kind, name));
                    let _ = index.apply(object(content(kind, name, 0)).deleted());
                }
                Step::Undecodable(kind, name) => {
                    let dirty = index.apply(object(content(kind, name, 1)).undecodable());
                    prop_assert!(dirty.is_empty(), "the last known state is kept: {dirty:?}");
                }
                Step::Attach(pod, n) => {
                    endpoints.insert(pod, endpoint(pod, n));
                    let _ = index.set_local_endpoint(endpoint(pod, n));
                }
                Step::Detach(pod) => {
                    endpoints.remove(&pod);
                    let _ = index.remove_local_endpoint(&endpoint(pod, 0).interface);
                }
                Step::Relist => {
                    let before = results(&index);
                    let dirty = list(&mut index, objects.values().cloned().map(object));
                    prop_assert!(dirty.is_empty(), "a list of known objects changes nothing: {dirty:?}");
                    prop_assert_eq!(before, results(&index));
                }
                Step::InterruptedList => {
                    let started =
                        of_every_kind(ObjectChange::ListStarted, ObjectChange::ListStarted, ObjectChange::ListStarted, ObjectChange::ListStarted);
                    started.into_iter().chain(objects.values().take(1).cloned().map(|o| object(o).listed())).for_each(
                        |event| {
                            let _ = index.apply(event);
                        },
                    );
                }
            }
        }
        let mut fresh = Index::new(me());
        for endpoint in endpoints.into_values() {
            let _ = fresh.set_local_endpoint(endpoint);
        }
        let _ = list(&mut fresh, objects.into_values().rev().map(object));
        prop_assert_eq!(results(&index), results(&fresh));
    }
}
