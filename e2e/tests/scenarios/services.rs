//! Policies where addresses are translated on the way: Services inside, node ports, and what is outside.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use towpath_e2e::cluster::Cluster;

use crate::harness::{Harness, Scenario};
use crate::outside::{Outside, with_outside};
use crate::pods::{self, HTTP, OTHER_HTTP, Pod};
use crate::policy::policy;
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "a policy applies to a Service's pods and their ports, not to the Service", run: behind },
    Scenario {
        name: "an ipBlock allows a client outside, also through a node port, and as a destination",
        run: outside,
    },
];

/// Port of the Service, on which no pod listens.
const SERVICE: u16 = 80;

fn behind(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    pods::with_namespace(&cluster, "behind", |namespace| {
        // Both servers listen on both ports; the Service leads to the first of them.
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "front"},
            "spec": {"selector": {"role": "server"}, "ports": [{"port": SERVICE, "targetPort": HTTP}]},
        });
        let ports = |direction: &str, port: u16| policy(direction, &to_servers(direction, &json!([{"port": port}])));
        pods::apply(&cluster, namespace, &[service, ports("ingress", HTTP)])?;
        let wanted = [
            pods::pod("server", "server", "n2", &pods::server()),
            pods::pod("client", "client", "n1", &pods::client()),
            pods::pod("near", "client", "n2", &pods::client()),
        ];
        let made = pods::start(&cluster, namespace, &wanted)?;
        let [server, client, near] = made.try_into().map_err(|_| anyhow!("three pods"))?;
        let address = service_address(&cluster, namespace, "front")?;
        let to = SocketAddr::new(address, SERVICE);
        let expect = |state: &str, service, pod| {
            let tcp = |from, to, want, why| Probe { from, to, by: Protocol::Tcp, want, why };
            let all = [&client, &near].map(|from| {
                [tcp(from, to, service, "through the Service"), tcp(from, server.at(HTTP), pod, "straight")]
            });
            traffic::expect(state, all.as_flattened())
        };
        expect("a server whose own port is open", Answer::Open, Answer::Open)?;
        pods::apply(&cluster, namespace, &[ports("ingress", SERVICE)])?;
        expect("a server with the Service's port open", Answer::Closed, Answer::Closed)?;
        cluster.kubectl(&["delete", "networkpolicy", "ingress", "-n", namespace])?;
        expect("a server without policies", Answer::Open, Answer::Open)?;
        pods::apply(&cluster, namespace, &[ports("egress", HTTP)])?;
        expect("clients that may send to the server's own port", Answer::Open, Answer::Open)?;
        pods::apply(&cluster, namespace, &[ports("egress", OTHER_HTTP)])?;
        expect("clients that may send to another port", Answer::Closed, Answer::Closed)
    })
}

/// A policy of one direction between clients and servers, with these ports.
fn to_servers(direction: &str, ports: &Value) -> Value {
    let select = |role: &str| json!({"matchLabels": {"role": role}});
    match direction {
        "ingress" => json!({
            "podSelector": select("server"),
            "ingress": [{"from": [{"podSelector": select("client")}], "ports": ports}],
        }),
        _ => json!({
            "podSelector": select("client"), "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": select("server")}], "ports": ports}],
        }),
    }
}

fn service_address(cluster: &Cluster, namespace: &str, name: &str) -> Result<IpAddr> {
    let object = cluster.get(&["service", name, "-n", namespace])?.context("the Service")?;
    Ok(object["spec"]["clusterIP"].as_str().context("its address")?.parse()?)
}

fn outside(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    with_outside(&cluster, |outside| {
        pods::with_namespace(&cluster, "borders", |namespace| {
            let wanted = [
                pods::pod("server", "server", "n1", &pods::server()),
                pods::pod("client", "client", "n2", &pods::client()),
            ];
            let made = pods::start(&cluster, namespace, &wanted)?;
            let [server, client] = made.try_into().map_err(|_| anyhow!("two pods"))?;
            let port = node_port(&cluster, namespace)?;
            let node = *cluster.node(&server.node)?.addresses().first().context("the node's address")?;
            comes_in(&cluster, namespace, outside, SocketAddr::new(node, port))?;
            goes_out(&cluster, namespace, &client, outside)
        })
    })
}

/// A node port that keeps the client's address: it forwards to pods of its own node only.
fn node_port(cluster: &Cluster, namespace: &str) -> Result<u16> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "door"},
        "spec": {
            "type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"role": "server"},
            "ports": [{"port": SERVICE, "targetPort": HTTP}],
        },
    });
    pods::apply(cluster, namespace, &[service])?;
    let object = cluster.get(&["service", "door", "-n", namespace])?.context("the Service")?;
    let port = object["spec"]["ports"][0]["nodePort"].as_u64().context("its node port")?;
    Ok(u16::try_from(port)?)
}

/// All machines of the outside's link, and the same without it.
fn blocks(outside: &Outside) -> [Value; 2] {
    let link = "172.30.0.0/24";
    [
        json!({"ipBlock": {"cidr": link}}),
        json!({"ipBlock": {"cidr": link, "except": [format!("{}/32", outside.address)]}}),
    ]
}

fn comes_in(cluster: &Cluster, namespace: &str, outside: &Outside, door: SocketAddr) -> Result<()> {
    let [link, without] = blocks(outside);
    let from = |peer: &Value| {
        let spec = json!({"podSelector": {"matchLabels": {"role": "server"}}, "ingress": [{"from": [peer]}]});
        pods::apply(cluster, namespace, &[policy("from", &spec)])
    };
    let expect = |state: &str, want| traffic::settle(state, want, || outside.connect(door));
    expect("a node port without policies", Answer::Open)?;
    from(&without)?;
    expect("a node port for everybody on the link but this client", Answer::Closed)?;
    from(&link)?;
    expect("a node port for the whole link", Answer::Open)
}

fn goes_out(cluster: &Cluster, namespace: &str, client: &Pod, outside: &Outside) -> Result<()> {
    let [link, without] = blocks(outside);
    let node = *cluster.node("n3")?.addresses().first().context("the node's address")?;
    let to = |peer: &Value| {
        let spec = json!({
            "podSelector": {"matchLabels": {"role": "client"}}, "policyTypes": ["Egress"], "egress": [{"to": [peer]}],
        });
        pods::apply(cluster, namespace, &[policy("to", &spec)])
    };
    let expect = |state: &str, outside_answer| {
        let tcp = |to, want, why| Probe { from: client, to, by: Protocol::Tcp, want, why };
        traffic::expect(
            state,
            &[
                tcp(outside.server(), outside_answer, "the machine outside"),
                // The kubelet of another node, in the same block.
                tcp(SocketAddr::new(node, 10_250), Answer::Open, "another machine of the link"),
            ],
        )
    };
    expect("a client without policies", Answer::Open)?;
    to(&without)?;
    expect("a client that may send to everybody on the link but one", Answer::Closed)?;
    to(&link)?;
    expect("a client that may send to the whole link", Answer::Open)
}
