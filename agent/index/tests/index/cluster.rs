//! A small cluster for policy tests: all pods are on this node and have an address of each family.

use std::{net::IpAddr, sync::Arc};

use imbl::OrdMap;
use serde_json::{Value, json};
use towpath_core::{
    model::{Endpoint, Family, PodId, Protocol},
    names::IfName,
    policy::eval::{Flow, FlowEndpoint, FlowTransport, eval},
};
use towpath_index::Index;

use crate::{
    compiled::{compiled, forwards},
    objects::{Object, namespace, object, pod, policy, synced},
};

fn ips(n: u8) -> [String; 2] {
    [format!("10.0.0.{n}"), format!("fd00::{n}")]
}

pub(crate) fn cluster_pod(namespace: &str, name: &str, n: u8, labels: Value) -> Value {
    let [v4, v6] = ips(n);
    pod(namespace, name, labels, &[&v4, &v6])
}

/// Namespaces: a (team=red), b (team=blue), c without labels.
pub(crate) fn objects() -> Vec<Object> {
    let mut web = cluster_pod("a", "web", 1, json!({ "app": "web" }));
    web["spec"]["containers"] = json!([{ "name": "c", "ports": [
        { "name": "http", "containerPort": 8080 }, { "name": "dns", "containerPort": 53, "protocol": "UDP" }
    ] }]);
    web["spec"]["initContainers"] = json!([{ "name": "i", "ports": [{ "name": "init", "containerPort": 9000 }] }]);
    let db = cluster_pod("a", "db", 2, json!({ "app": "db", "tier": "back" }));
    let mut web_b = cluster_pod("b", "web", 3, json!({ "app": "web" }));
    web_b["spec"]["containers"] = json!([{ "name": "c", "ports": [{ "name": "http", "containerPort": 80 }] }]);
    let client = cluster_pod("b", "client", 4, json!({ "role": "client" }));
    let mut done = cluster_pod("b", "done", 5, json!({ "role": "client" }));
    done["status"]["phase"] = json!("Succeeded");
    let mut terminating = cluster_pod("b", "terminating", 6, json!({ "role": "client" }));
    terminating["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let other = cluster_pod("c", "other", 7, json!({}));
    let mut host = cluster_pod("b", "host", 8, json!({ "role": "client", "app": "web" }));
    host["spec"]["hostNetwork"] = json!(true);
    let pods = [web, db, web_b, client, done, terminating, other, host].map(object);
    let namespaces = [("a", json!({ "team": "red" })), ("b", json!({ "team": "blue" })), ("c", json!({}))];
    pods.into_iter().chain(namespaces.map(|(name, labels)| namespace(name, labels))).collect()
}

/// The address of a pod, or of `outside.<n>`, a host outside the cluster.
fn address(who: &str, family: Family) -> IpAddr {
    let pods = ["a/web", "a/db", "b/web", "b/client", "b/done", "b/terminating", "c/other", "b/host"];
    let text = match (pods.iter().position(|p| *p == who), who.strip_prefix("outside.")) {
        (Some(n), _) => ips(u8::try_from(n).unwrap() + 1)[usize::from(family == Family::V6)].clone(),
        (None, Some(n)) if family == Family::V4 => format!("192.0.2.{n}"),
        (None, Some(n)) => format!("2001:db8::{n}"),
        (None, None) => panic!("unknown name {who}"),
    };
    text.parse().unwrap()
}

/// The policy for a family. For IPv6, `192.0.2.` becomes `2001:db8::` and `10.0.0.` becomes `fd00::`.
fn of_family(spec: &Value, family: Family) -> Value {
    let text = spec.to_string();
    let text = match family {
        Family::V4 => text,
        Family::V6 => text
            .replace("192.0.2.", "2001:db8::")
            .replace("10.0.0.", "fd00::")
            .replace("0.0.0.0/0", "::/0")
            .replace("/24", "/120")
            .replace("/28", "/124")
            .replace("/32", "/128"),
    };
    serde_json::from_str(&text).unwrap()
}

/// The endpoints of the pods with their own network namespace.
fn endpoints(index: &Index) -> OrdMap<IfName, Arc<Endpoint>> {
    let ids = ["a/web", "a/db", "b/web", "b/client", "b/terminating", "c/other"];
    ids.into_iter()
        .map(|who| {
            let pod = id(who);
            assert!(index.pod_known(&pod, None), "{who}");
            let interface = IfName::of_pod(&pod.namespace, &pod.name);
            let addresses = Family::ALL.map(|family| address(who, family)).to_vec();
            (interface.clone(), Arc::new(Endpoint { pod, interface, addresses }))
        })
        .collect()
}

fn id(who: &str) -> PodId {
    let (namespace, name) = who.split_once('/').unwrap();
    PodId { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn transport(text: &str) -> FlowTransport {
    let (protocol, port) = text.split_once(' ').unwrap_or((text, ""));
    let with = |protocol| FlowTransport::Port(protocol, port.parse().unwrap());
    match protocol {
        "tcp" => with(Protocol::Tcp),
        "udp" => with(Protocol::Udp),
        "sctp" => with(Protocol::Sctp),
        "icmp" => FlowTransport::Other(1),
        other => panic!("unknown protocol {other}"),
    }
}

/// Checks packets such as `b/client > a/web tcp 80` against policies of namespace `a`, for both families, with the
/// evaluator and with the compiled table.
pub(crate) fn check(why: &str, specs: &[Value], allowed: &[&str], denied: &[&str]) {
    for family in Family::ALL {
        let policies = specs.iter().enumerate().map(|(n, s)| policy("a", &format!("p{n}"), of_family(s, family)));
        let index = synced(objects().into_iter().chain(policies));
        check_over(family, why, &index, allowed, denied);
    }
}

/// Checks packets against the current state of an index.
pub(crate) fn check_now(why: &str, index: &Index, allowed: &[&str], denied: &[&str]) {
    Family::ALL.into_iter().for_each(|family| check_over(family, why, index, allowed, denied));
}

fn check_over(family: Family, why: &str, index: &Index, allowed: &[&str], denied: &[&str]) {
    let all = allowed.iter().map(|p| (p, true)).chain(denied.iter().map(|p| (p, false)));
    for (packet, want) in all {
        let (from, rest) = packet.split_once(" > ").unwrap();
        let (to, transport) = rest.split_once(' ').unwrap();
        let (by_eval, by_table) = decide(index, (from, to), family, self::transport(transport));
        assert_eq!(by_eval, want, "{why}: {packet} over {family}, evaluated");
        assert_eq!(by_table, want, "{why}: {packet} over {family}, compiled");
    }
}

fn decide(index: &Index, (from, to): (&str, &str), family: Family, transport: FlowTransport) -> (bool, bool) {
    let snapshot = index.snapshot().unwrap();
    let endpoints = endpoints(index);
    let end = |who: &str| {
        let here = endpoints.values().find(|e| format!("{}", e.pod) == who);
        let interface = here.map_or_else(|| IfName::new("eth0").unwrap(), |e| e.interface.clone());
        (FlowEndpoint { address: address(who, family), pod: here.map(|e| e.pod.clone()) }, interface)
    };
    let ((from, in_interface), (to, out_interface)) = (end(from), end(to));
    let packet = Flow { from, to, transport };
    let by_table = forwards(&compiled(snapshot, &endpoints), [&in_interface, &out_interface], &packet);
    (eval(snapshot, &packet).allows(), by_table)
}
