//! Random API objects: every form of NetworkPolicy, including invalid ones. The clusters are small, so that labels,
//! addresses and ports of policies, pods and packets often coincide.

use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::{select, subsequence},
};
use serde_json::{Map, Value, json};

/// Ports that policies, containers and packets use.
pub(super) const PORTS: [u16; 6] = [53, 79, 80, 81, 443, 8080];

const NAMESPACES: [&str; 3] = ["a", "b", "c"];

/// Addresses that belong to no pod, including those of a node.
pub(super) const OTHERS: [&str; 6] = ["10.0.0.99", "192.0.2.7", "172.30.0.1", "fd00::99", "2001:db8::7", "fd00:172::1"];

/// The objects of a cluster, as JSON.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    pub(super) namespaces: Vec<Value>,
    pub(super) pods: Vec<Value>,
    pub(super) policies: Vec<Value>,
}

pub(super) fn objects() -> impl Strategy<Value = Objects> {
    let namespaces = vec(option::weighted(0.9, labels()), NAMESPACES.len());
    let pods = vec((select(NAMESPACES.to_vec()), pod()), 2..=7);
    let policies = vec((select(NAMESPACES.to_vec()), spec()), 0..=5);
    (namespaces, pods, policies).prop_map(|(namespaces, pods, policies)| {
        let namespaces = NAMESPACES.iter().zip(namespaces).filter_map(|(name, labels)| {
            Some(json!({ "kind": "Namespace", "metadata": { "name": name, "labels": labels? } }))
        });
        let named = |kind: &str, n: usize, namespace: &str, mut object: Value| {
            object["kind"] = json!(kind);
            object["metadata"]["namespace"] = json!(namespace);
            object["metadata"]["name"] = json!(format!("{}{n}", kind.to_lowercase()));
            object
        };
        let pods = pods.into_iter().enumerate().map(|(n, (namespace, pod))| named("Pod", n, namespace, pod));
        let policies = policies.into_iter().enumerate();
        let policies =
            policies.map(|(n, (namespace, spec))| named("NetworkPolicy", n, namespace, json!({ "spec": spec })));
        Objects { namespaces: namespaces.collect(), pods: pods.collect(), policies: policies.collect() }
    })
}

/// A JSON object with the fields that are `Some`.
fn with(fields: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect::<Map<_, _>>().into()
}

fn labels() -> impl Strategy<Value = Value> {
    btree_map(select(vec!["x", "y"]), select(vec!["1", "2"]), 0..=2).prop_map(|labels| json!(labels))
}

fn protocol() -> impl Strategy<Value = Option<Value>> {
    option::of(select(vec!["TCP", "TCP", "UDP", "SCTP"]).prop_map(Value::from))
}

fn containers() -> impl Strategy<Value = Value> {
    let name = option::weighted(0.8, select(vec!["web", "dns"]).prop_map(Value::from));
    let port = (name, protocol(), select(PORTS.to_vec())).prop_map(|(name, protocol, number)| {
        with([("name", name), ("protocol", protocol), ("containerPort", Some(json!(number)))])
    });
    let restart = option::of(Just(json!("Always")));
    let container = (option::of(vec(port, 0..=2)), restart).prop_map(|(ports, restart)| {
        with([("name", Some(json!("c"))), ("ports", ports.map(Value::from)), ("restartPolicy", restart)])
    });
    vec(container, 0..=2).prop_map(Value::from)
}

fn pod() -> impl Strategy<Value = Value> {
    let ips = (option::weighted(0.9, 1_u8..=9), option::weighted(0.7, 1_u8..=9));
    let phase = select(vec!["Running", "Running", "Running", "Running", "Pending", "Unknown", "Succeeded", "Failed"]);
    let deleted = option::weighted(0.1, Just(json!("2026-01-01T00:00:00Z")));
    let node = prop_oneof![4 => Just("me"), 1 => Just("elsewhere")];
    let host = option::weighted(0.3, proptest::bool::weighted(0.5));
    let init = option::of(containers());
    (labels(), ips, phase, deleted, (node, host), (containers(), init)).prop_map(
        |(labels, (v4, v6), phase, deleted, (node, host), (containers, init))| {
            let ips = v4.map(|n| format!("10.0.0.{n}")).into_iter().chain(v6.map(|n| format!("fd00::{n}")));
            let ips: Vec<Value> = ips.map(|ip| json!({ "ip": ip })).collect();
            let spec = [
                ("nodeName", Some(json!(node))),
                ("hostNetwork", host.map(Value::from)),
                ("containers", Some(containers)),
                ("initContainers", init),
            ];
            json!({
                "metadata": with([("labels", Some(labels)), ("deletionTimestamp", deleted)]),
                "spec": with(spec),
                "status": { "phase": phase, "podIPs": ips },
            })
        },
    )
}

fn requirement() -> impl Strategy<Value = Value> {
    let key = || select(vec!["x", "y"]);
    let values = || subsequence(vec!["1", "2", "3"], 1..=2);
    let valued = |operator| {
        (key(), values()).prop_map(move |(key, values)| json!({ "key": key, "operator": operator, "values": values }))
    };
    let bare = |operator| key().prop_map(move |key| json!({ "key": key, "operator": operator }));
    let odd = [("In", json!([])), ("Exists", json!(["1"])), ("Near", json!(["1"]))];
    let odd = (key(), select(odd.to_vec()))
        .prop_map(|(key, (operator, values))| json!({ "key": key, "operator": operator, "values": values }));
    prop_oneof![
        6 => valued("In"),
        4 => valued("NotIn"),
        4 => bare("Exists"),
        4 => bare("DoesNotExist"),
        3 => odd,
    ]
}

fn selector() -> impl Strategy<Value = Value> {
    let label = (select(vec!["x", "y"]), select(vec!["1", "2"])).prop_map(|(key, value)| json!({ key: value }));
    let some = (option::of(label), option::of(vec(requirement(), 0..=2)));
    prop_oneof![
        1 => Just(json!({})),
        2 => some.prop_map(|(labels, list)| with([("matchLabels", labels), ("matchExpressions", list.map(Value::from))])),
    ]
}

fn block() -> impl Strategy<Value = Value> {
    let v4 = ["0.0.0.0/0", "10.0.0.0/24", "10.0.0.0/29", "10.0.0.6/30", "10.0.0.5/32", "192.0.2.0/24", "172.30.0.1/32"];
    let v6 = ["::/0", "fd00::/64", "fd00::/125", "fd00::6/126", "fd00::5/128", "2001:db8::/32", "fd00:172::/64"];
    let nets = prop_oneof![8 => Just(v4.to_vec()), 8 => Just(v6.to_vec()), 3 => Just(vec!["10.0.0.0/33", "0.0.0.0/0", "::/0"])];
    nets.prop_flat_map(|nets| (select(nets.clone()), option::of(subsequence(nets, 0..=2))))
        .prop_map(|(net, except)| with([("cidr", Some(json!(net))), ("except", except.map(|list| json!(list)))]))
}

fn peer() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => selector().prop_map(|pods| json!({ "podSelector": pods })),
        3 => selector().prop_map(|namespaces| json!({ "namespaceSelector": namespaces })),
        3 => (selector(), selector()).prop_map(|(n, p)| json!({ "namespaceSelector": n, "podSelector": p })),
        4 => block().prop_map(|block| json!({ "ipBlock": block })),
        1 => option::of((block(), selector())).prop_map(|both| match both {
            None => json!({}),
            Some((block, pods)) => json!({ "ipBlock": block, "podSelector": pods }),
        }),
    ]
}

fn port() -> impl Strategy<Value = Value> {
    let number = || select(PORTS.to_vec());
    let fields = prop_oneof![
        4 => number().prop_map(|n| (Some(json!(n)), None)),
        2 => (number(), number()).prop_map(|(n, end)| (Some(json!(n)), Some(json!(end)))),
        3 => select(vec!["web", "dns"]).prop_map(|name| (Some(json!(name)), None)),
        1 => Just((None, None)),
        1 => select(vec![(Some(json!("web")), Some(json!(80))), (None, Some(json!(80))), (Some(json!(0)), None), (Some(json!("80")), None)]),
    ];
    let protocol = prop_oneof![9 => protocol(), 1 => Just(Some(json!("QUIC")))];
    (fields, protocol)
        .prop_map(|((port, end), protocol)| with([("port", port), ("endPort", end), ("protocol", protocol)]))
}

fn rules(peers: &'static str) -> impl Strategy<Value = Option<Value>> {
    let list = |weight, items: BoxedStrategy<Value>| option::weighted(weight, vec(items, 0..=3).prop_map(Value::from));
    let rule = (list(0.8, peer().boxed()), list(0.6, port().boxed()))
        .prop_map(move |(from, ports)| with([(peers, from), ("ports", ports)]));
    option::weighted(0.7, vec(rule, 0..=2).prop_map(Value::from))
}

fn spec() -> impl Strategy<Value = Value> {
    let types = [json!([]), json!(["Ingress"]), json!(["Egress"]), json!(["Ingress", "Egress"]), json!(["Sideways"])];
    let types = option::weighted(0.7, select(types.to_vec()));
    (option::weighted(0.95, selector()), types, rules("from"), rules("to")).prop_map(
        |(pods, types, ingress, egress)| {
            with([("podSelector", pods), ("policyTypes", types), ("ingress", ingress), ("egress", egress)])
        },
    )
}
