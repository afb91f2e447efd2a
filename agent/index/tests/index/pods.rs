//! Pods and local endpoints.

use std::net::IpAddr;

use serde_json::{Value, json};
use towpath_core::{
    model::{Endpoint, PodId},
    names::IfName,
    policy::ir::Pod,
};
use towpath_index::{DirtyPart, Index};

use crate::objects::{list, namespace, object, pod, policy, synced};

fn id(name: &str) -> PodId {
    PodId { namespace: "a".to_owned(), name: name.to_owned() }
}

fn web(ips: &[&str]) -> Value {
    pod("a", "web", json!({ "app": "web" }), ips)
}

fn endpoint(name: &str, addresses: &[&str]) -> Endpoint {
    let pod = id(name);
    let interface = IfName::of_pod(&pod.namespace, &pod.name);
    Endpoint { pod, interface, addresses: addresses.iter().map(|a| a.parse().unwrap()).collect() }
}

fn known<'a>(index: &'a Index, name: &str) -> &'a Pod {
    &index.snapshot().unwrap().pods[&id(name)]
}

fn addresses(index: &Index, name: &str) -> Vec<String> {
    known(index, name).addresses.iter().map(IpAddr::to_string).collect()
}

#[test]
fn the_addresses_of_a_pod_are_those_in_its_status() {
    let mut pod = web(&["10.0.0.1", "fd00::1", "nonsense"]);
    pod["status"]["podIP"] = json!("10.0.0.1");
    let index = synced([object(pod)]);
    assert_eq!(addresses(&index, "web"), ["10.0.0.1", "fd00::1"], "malformed addresses are ignored");
    let mut old = web(&[]);
    old["status"] = json!({ "podIP": "10.0.0.9" });
    assert_eq!(addresses(&synced([object(old)]), "web"), ["10.0.0.9"], "podIP alone is used as well");
}

#[test]
fn a_finished_pod_is_removed_at_once() {
    for phase in ["Succeeded", "Failed"] {
        let mut index = synced([object(web(&["10.0.0.1"]))]);
        assert!(index.pod_known(&id("web"), None));
        let mut done = web(&["10.0.0.1"]);
        done["status"]["phase"] = json!(phase);
        assert!(index.apply(object(done.clone()).applied()).contains(DirtyPart::Policy), "{phase}");
        assert!(!index.pod_known(&id("web"), None), "{phase}");
        assert!(index.apply(object(done.clone()).applied()).is_empty(), "{phase}: already removed");
        let _ = list(&mut index, [object(done)]);
        assert!(!index.pod_known(&id("web"), None), "{phase}: a list does not add it again");
    }
}

#[test]
fn the_address_of_an_endpoint_takes_effect_before_the_api_server_reports_it() {
    let mut index = synced([object(web(&[]))]);
    assert!(index.set_local_endpoint(endpoint("web", &["10.0.0.1"])).contains(DirtyPart::Policy));
    assert_eq!(addresses(&index, "web"), ["10.0.0.1"]);
    assert!(index.set_local_endpoint(endpoint("web", &["10.0.0.1"])).is_empty(), "no change");
    assert!(index.apply(object(web(&["10.0.0.1"])).applied()).is_empty(), "the address is already known");
    let _ = index.apply(object(web(&["10.0.0.1", "fd00::1"])).applied());
    assert_eq!(addresses(&index, "web"), ["10.0.0.1", "fd00::1"], "the addresses of both sources");
    assert!(index.remove_local_endpoint(&endpoint("web", &[]).interface).contains(DirtyPart::Policy));
    assert_eq!(addresses(&index, "web"), ["10.0.0.1", "fd00::1"], "the addresses in the status remain");
    assert!(index.remove_local_endpoint(&endpoint("web", &[]).interface).is_empty(), "already removed");
}

#[test]
fn an_endpoint_can_be_added_before_its_pod_and_is_removed_completely() {
    let mut index = synced([]);
    let _ = index.set_local_endpoint(endpoint("web", &["10.0.0.1"]));
    assert!(!index.pod_known(&id("web"), None) && index.endpoints().len() == 1);
    let _ = index.apply(object(web(&[])).applied());
    assert_eq!(addresses(&index, "web"), ["10.0.0.1"]);
    let _ = index.set_local_endpoint(endpoint("web", &["10.0.0.2"]));
    assert_eq!(addresses(&index, "web"), ["10.0.0.2"], "the address of the replaced endpoint is removed");
    let _ = index.remove_local_endpoint(&endpoint("web", &[]).interface);
    assert!(addresses(&index, "web").is_empty());
}

#[test]
fn an_interface_that_is_reassigned_to_another_pod_moves_its_address() {
    let mut index = synced([object(web(&[])), object(pod("a", "db", json!({}), &[]))]);
    let mut first = endpoint("web", &["10.0.0.1"]);
    let _ = index.set_local_endpoint(first.clone());
    first.pod = id("db");
    let _ = index.set_local_endpoint(first);
    assert!(addresses(&index, "web").is_empty());
    assert_eq!(addresses(&index, "db"), ["10.0.0.1"]);
}

#[test]
fn a_list_removes_what_is_not_in_it() {
    let before = || {
        [
            object(web(&["10.0.0.1"])),
            object(pod("a", "db", json!({}), &["10.0.0.2"])),
            namespace("a", json!({ "team": "red" })),
            policy("a", "p", json!({ "podSelector": {} })),
        ]
    };
    let mut index = synced(before());
    assert!(list(&mut index, before()).is_empty(), "an equal list");
    assert!(list(&mut index, [object(web(&["10.0.0.1"]))]).contains(DirtyPart::Policy));
    let snapshot = index.snapshot().unwrap();
    assert_eq!(snapshot.pods.keys().collect::<Vec<_>>(), [&id("web")]);
    assert!(snapshot.namespaces.is_empty() && snapshot.tiers[0].policies.is_empty());
}

#[test]
fn objects_without_a_name_are_ignored() {
    let mut index = synced([object(web(&["10.0.0.1"]))]);
    for json in [
        json!({ "kind": "Pod", "metadata": {} }),
        json!({ "kind": "Pod", "metadata": { "name": "x" } }),
        json!({ "kind": "Node", "metadata": {} }),
        json!({ "kind": "Namespace", "metadata": {} }),
        json!({ "kind": "NetworkPolicy", "metadata": { "name": "x" } }),
    ] {
        assert!(index.apply(object(json.clone()).applied()).is_empty(), "{json}");
        assert!(index.apply(object(json.clone()).deleted()).is_empty(), "{json}");
    }
    assert!(index.pod_known(&id("web"), None));
}

#[test]
fn the_uid_of_the_kubelet_distinguishes_a_pod_from_its_predecessor_of_the_same_name() {
    let with = |uid: &str| {
        let mut pod = web(&["10.0.0.1"]);
        pod["metadata"]["uid"] = json!(uid);
        pod
    };
    let mut index = synced([object(with("first"))]);
    let knows = |index: &Index, uid: &str| index.pod_known(&id("web"), Some(uid));
    assert!(knows(&index, "first") && !knows(&index, "second"));
    let dirty = index.apply(object(with("second")).applied());
    assert!(dirty.contains(DirtyPart::Policy), "a CNI ADD may wait for this UID, even if nothing else has changed");
    assert!(knows(&index, "second") && !knows(&index, "first"));
    assert!(index.apply(object(with("second")).applied()).is_empty());

    let mut image = with("of the API server");
    image["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "of the kubelet" });
    let index = synced([object(image)]);
    assert!(knows(&index, "of the kubelet") && !knows(&index, "of the API server"), "a static pod");

    let mut remote = with("first");
    remote["spec"]["nodeName"] = json!("elsewhere");
    assert!(!knows(&synced([object(remote)]), "first"), "the UIDs of pods of other nodes are not kept");
}
