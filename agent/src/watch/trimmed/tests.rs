//! What is kept of objects, and what becomes of malformed ones.

use std::fmt::Debug;

use kube::{
    ResourceExt,
    core::{ObjectList, WatchEvent},
};
use serde_json::json;
use towpath_core::model::NodeName;
use towpath_index::{Event, Index, ObjectChange};

use super::*;

/// A pod of this node with much that nobody reads.
fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "a", "name": "web", "uid": "of the API server", "resourceVersion": "7",
            "creationTimestamp": "2026-01-01T00:00:00Z", "generateName": "web-", "labels": { "app": "web" },
            "annotations": { "kubernetes.io/config.mirror": "of the kubelet", "example.org/large": "x" },
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u" }],
            "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:metadata": {} } }],
        },
        "spec": {
            "nodeName": "me", "hostNetwork": false, "volumes": [{ "name": "v", "emptyDir": {} }],
            "containers": [{
                "name": "c", "image": "i", "env": [{ "name": "A", "value": "1" }],
                "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP", "hostPort": 1 }],
            }, { "name": "no ports" }],
            "initContainers": [{ "name": "i", "ports": [{ "name": "setup", "containerPort": 9000 }] }],
        },
        "status": {
            "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn node() -> Value {
    json!({
        "metadata": {
            "name": "me", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": { "kubernetes.io/os": "linux" },
            "annotations": {
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/backend-data": r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}"#,
                "flannel.alpha.coreos.com/public-ip": "172.30.0.1",
            },
        },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00::/64"], "taints": [] },
        "status": {
            "addresses": [{ "type": "InternalIP", "address": "172.30.0.1" }],
            "conditions": [
                { "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "m" },
            ],
            "images": [{ "names": ["i"], "sizeBytes": 1 }],
        },
    })
}

fn namespace() -> Value {
    json!({
        "metadata": { "name": "a", "resourceVersion": "7", "labels": { "team": "red" }, "annotations": { "a": "b" } },
        "spec": { "finalizers": ["kubernetes"] }, "status": { "phase": "Active" },
    })
}

fn policy() -> Value {
    json!({
        "metadata": { "namespace": "a", "name": "p", "resourceVersion": "7", "labels": { "a": "b" } },
        "spec": {
            "podSelector": { "matchExpressions": [{ "key": "app", "operator": "In", "values": ["web"] }] },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [{ "namespaceSelector": {}, "podSelector": { "matchLabels": { "a": "b" } } }],
                "ports": [{ "port": "http" }, { "port": 80, "endPort": 90, "protocol": "UDP" }],
            }],
            "egress": [{ "to": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } }] }],
        },
    })
}

fn trimmed<K: Watched>(json: &Value) -> Trimmed<K> {
    serde_json::from_str(&json.to_string()).unwrap()
}

/// Everything that an index says of these objects.
fn answers([node, namespace, policy, pod]: [Event; 4]) -> String {
    let mut index = Index::new(NodeName("me".to_owned()));
    for event in [
        Event::Node(Box::new(ObjectChange::ListStarted)),
        Event::Namespace(Box::new(ObjectChange::ListStarted)),
        Event::NetworkPolicy(Box::new(ObjectChange::ListStarted)),
        Event::Pod(Box::new(ObjectChange::ListStarted)),
        node,
        namespace,
        policy,
        pod,
        Event::Node(Box::new(ObjectChange::ListDone)),
        Event::Namespace(Box::new(ObjectChange::ListDone)),
        Event::NetworkPolicy(Box::new(ObjectChange::ListDone)),
        Event::Pod(Box::new(ObjectChange::ListDone)),
    ] {
        let _ = index.apply(event);
    }
    let rejected: Vec<_> = index.rejected().collect();
    format!("{index:#?} {:#?} {:#?} {rejected:?}", index.snapshot().unwrap(), index.nodes())
}

#[test]
fn what_is_skipped_is_nothing_that_the_index_reads() {
    fn whole<K: Watched>(json: &Value) -> Box<ObjectChange<K>> {
        Box::new(ObjectChange::Listed(serde_json::from_value(json.clone()).unwrap()))
    }
    fn part<K: Watched>(json: &Value) -> Box<ObjectChange<K>> {
        let Trimmed { object, error } = trimmed(json);
        assert_eq!(error, None);
        Box::new(ObjectChange::Listed(object))
    }
    let (node, namespace, policy, pod) = (node(), namespace(), policy(), pod());
    let whole = [
        Event::Node(whole(&node)),
        Event::Namespace(whole(&namespace)),
        Event::NetworkPolicy(whole(&policy)),
        Event::Pod(whole(&pod)),
    ];
    let part = [
        Event::Node(part(&node)),
        Event::Namespace(part(&namespace)),
        Event::NetworkPolicy(part(&policy)),
        Event::Pod(part(&pod)),
    ];
    assert_eq!(answers(part), answers(whole));
}

#[test]
fn of_a_pod_nothing_is_decoded_but_what_is_read() {
    let pod: Pod = trimmed(&pod()).object;
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "a", "name": "web", "uid": "of the API server", "resourceVersion": "7",
            "labels": { "app": "web" }, "annotations": { "kubernetes.io/config.mirror": "of the kubelet" },
        },
        "spec": {
            "nodeName": "me", "hostNetwork": false,
            "containers": [
                { "name": "", "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }] },
                { "name": "" },
            ],
            "initContainers": [{ "name": "", "ports": [{ "name": "setup", "containerPort": 9000 }] }],
        },
        "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "fd00::1" }] },
    });
    assert_eq!(serde_json::to_value(pod).unwrap(), expected);
}

#[test]
fn a_malformed_object_keeps_its_name_and_skipped_fields_may_have_any_form() {
    let change = |change: &dyn Fn(&mut Value)| {
        let mut pod = pod();
        change(&mut pod);
        trimmed::<Pod>(&pod)
    };
    let odd = change(&|pod| pod["spec"]["volumes"] = json!("a form of tomorrow"));
    assert_eq!(odd.error, None, "nobody reads volumes");
    for (trimmed, why) in [
        (change(&|pod| pod["spec"]["containers"] = json!("many")), "a text for a list"),
        (change(&|pod| pod["spec"] = json!(7)), "a number for an object"),
        (change(&|pod| pod["spec"]["hostNetwork"] = json!(1.5)), "a number for a switch"),
        (change(&|pod| pod["metadata"]["labels"]["app"] = json!(["web"])), "a list for a text"),
    ] {
        assert!(trimmed.error.is_some(), "{why}");
        let version = trimmed.resource_version();
        assert_eq!((trimmed.namespace().as_deref(), trimmed.name_any().as_str()), (Some("a"), "web"), "{why}");
        assert_eq!(version.as_deref(), Some("7"), "{why}: the watch goes on behind it");
        assert!(super::super::decoded(trimmed).is_err_and(|named| named.spec.is_none()), "{why}");
    }
    for json in [json!({ "metadata": 7 }), json!([]), json!("pod"), json!(null), json!(true), json!(-1), json!({})] {
        assert_eq!(trimmed::<Pod>(&json).meta().name, None, "{json} has no name, and is decoded all the same");
    }
}

#[test]
fn a_malformed_object_fails_neither_its_list_nor_the_watch() {
    let bad = json!({ "metadata": { "name": "bad", "namespace": "a", "resourceVersion": "8" }, "spec": "none" });
    fn names<K: Resource<DynamicType = ()>>(items: &[K]) -> Vec<String> {
        items.iter().map(ResourceExt::name_any).collect()
    }
    let page = json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": { "resourceVersion": "9", "continue": "more" },
        "items": [bad, pod()],
    });
    let page: ObjectList<Trimmed<Pod>> = serde_json::from_str(&page.to_string()).unwrap();
    assert_eq!(names(&page.items), ["bad", "web"]);
    assert_eq!(page.items.iter().map(|item| item.error.is_some()).collect::<Vec<_>>(), [true, false]);
    assert_eq!(page.metadata.continue_.as_deref(), Some("more"));
    for text in [format!(r#"{{"type":"MODIFIED","object":{bad}}}"#), format!(r#"{{"object":{bad},"type":"MODIFIED"}}"#)]
    {
        let event: WatchEvent<Trimmed<Pod>> = serde_json::from_str(&text).unwrap();
        let WatchEvent::Modified(object) = event else { panic!("{event:?}") };
        assert!(object.error.is_some() && object.name_any() == "bad", "{text}");
    }
}

fn has_the_resource_of_its_kind<K: Watched + Debug>() {
    type ResourceNames = (String, String, String, String);
    fn served<K: Resource<DynamicType = ()>>() -> ResourceNames {
        let [kind, group, version, plural] =
            [K::kind(&()), K::group(&()), K::version(&()), K::plural(&())].map(Cow::into_owned);
        (kind, group, version, plural)
    }
    assert_eq!(served::<Trimmed<K>>(), served::<K>());
}

#[test]
fn a_trimmed_kind_is_watched_where_the_kind_is_served() {
    has_the_resource_of_its_kind::<Node>();
    has_the_resource_of_its_kind::<Namespace>();
    has_the_resource_of_its_kind::<NetworkPolicy>();
    has_the_resource_of_its_kind::<Pod>();
}
