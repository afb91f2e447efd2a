//! Connectivity: pods reach pods, Services, names and the outside, from their own addresses.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, Scenario};
use crate::outside::with_outside;
use crate::pods::{self, HTTP, SharedPods, UDP};
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "pods on the same and on different nodes reach each other by ping, TCP and UDP", run: pod_to_pod },
    Scenario {
        name: "a packet of 1450 bytes crosses nodes unfragmented, and one more byte is rejected at once",
        run: mtu,
    },
    Scenario { name: "a pod reaches a Service by its name, and itself through its own Service", run: services },
    Scenario {
        name: "a machine outside sees the node's address, and a pod on another node sees the pod's",
        run: addresses,
    },
];

fn pod_to_pod(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let from = &shared.client;
    let mut probes = Vec::new();
    for server in &shared.servers {
        traffic::ping(from, server.ip, &[])?;
        for (by, port) in [(Protocol::Tcp, HTTP), (Protocol::Udp, UDP)] {
            probes.push(Probe { from, to: server.at(port), by, want: Answer::Open, why: "there is no policy" });
        }
    }
    traffic::expect("an answer from every server", &probes)
}

fn mtu(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let (from, far) = (&shared.client, shared.far()?.ip);
    // 20 bytes of IPv4 and 8 of ICMP come on top of what is given to ping.
    traffic::ping(from, far, &["-M", "do", "-s", "1422"])?;
    let refused = traffic::ping(from, far, &["-M", "do", "-s", "1423"]);
    let Err(said) = refused else { anyhow::bail!("1451 bytes passed a network of 1450") };
    let said = format!("{said:#}");
    ensure!(said.contains("message too long") || said.contains("mtu=1450"), "the error is not the pod's own: {said}");
    // Larger packets are fragmented by the pod and reassembled at the other end.
    traffic::ping(from, far, &["-s", "4000"]).map(drop)
}

fn services(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let node = shared.client.node.as_str();
    pods::with_namespace(&cluster, "services", |namespace| {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "self"},
            "spec": {"selector": {"role": "self"}, "ports": [{"port": 80, "targetPort": HTTP}]},
        });
        pods::apply(&cluster, namespace, &[service])?;
        let made =
            [pods::pod("self", "self", node, &pods::server()), pods::pod("client", "client", node, &pods::client())];
        let [server, client] = pods::start(&cluster, namespace, &made)?.try_into().map_err(|_| anyhow!("two pods"))?;
        let object = cluster.get(&["service", "self", "-n", namespace])?.context("the Service")?;
        let address: IpAddr = object["spec"]["clusterIP"].as_str().context("its address")?.parse()?;
        let to = SocketAddr::new(address, 80);
        let open = |from, why| Probe { from, to, by: Protocol::Tcp, want: Answer::Open, why };
        traffic::expect("answers of the Service", &[open(&client, "a client"), open(&server, "the server itself")])?;
        ensure!(traffic::http(&client, to, "/hostname")? == "self", "the Service leads to another pod");
        wait_for("the Service's address by its name", Duration::from_secs(60), || {
            let said = client.exec(&cluster, &["/bin/nslookup", "self.services.svc.cluster.local"])?;
            let text = String::from_utf8_lossy(&said.stdout);
            Ok((said.status.success() && text.contains(&address.to_string())).then_some(()))
        })
    })
}

fn addresses(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let (client, far, near) = (&shared.client, shared.far()?, shared.near()?);
    for server in [far, near] {
        let seen = traffic::seen_as(client, server.at(HTTP))?;
        ensure!(seen == client.ip, "{} sees {} as {seen}", server.name, client.name);
    }
    let node = *cluster.node(&client.node)?.addresses().first().context("the node's address")?;
    with_outside(&cluster, |outside| {
        let (to, listener) = (outside.server(), &outside.tcp);
        client.inside(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)).context("connect to the outside"))?;
        let seen = listener.accept()?.1.ip();
        ensure!(seen == node, "the outside sees {seen} and not the node's {node} over TCP");
        client.inside(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.send_to(b"hello", to).context("send to the outside")
        })?;
        let seen = outside.udp.recv_from(&mut [0; 16])?.1.ip();
        ensure!(seen == node, "the outside sees {seen} and not the node's {node} over UDP");
        Ok(())
    })
}
