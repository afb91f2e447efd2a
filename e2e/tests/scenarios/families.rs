//! Both IP families, on a cluster of its own.

use std::net::SocketAddr;

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};
use towpath_e2e::cluster::{Cluster, IpFamily};
use towpath_e2e::deploy;

use crate::cluster::own;
use crate::harness::{Harness, READY, Scenario};
use crate::pods::{self, HTTP, Pod, UDP};
use crate::policy::policy;
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "connectivity and policies work in both IP families of a dual-stack cluster", run: both }];

const NAMESPACE: &str = "both";

fn both(harness: &Harness) -> Result<()> {
    harness.with_cleanup(&own(), || {
        let cluster = harness.fresh_with(&own(), 2, IpFamily::Dual)?;
        harness.install_on(&cluster)?;
        let config = json!({
            "apiVersion": "towpath.io/v1alpha1", "kind": "NetworkConfig", "metadata": {"name": "default"},
            "spec": {"podCIDRs": IpFamily::Dual.pod_range().split(',').collect::<Vec<_>>()},
        });
        cluster.apply(&config.to_string())?;
        deploy::wait_ready(&cluster, READY)?;
        pods::namespace(&cluster, NAMESPACE)?;
        let wanted = [
            pods::pod("server", "server", "n2", &pods::server()),
            pods::pod("client", "client", "n1", &pods::client()),
            pods::pod("near", "near", "n2", &pods::client()),
        ];
        let made = pods::start(&cluster, NAMESPACE, &wanted)?;
        let [server, client, near] = made.try_into().map_err(|_| anyhow!("three pods"))?;
        ensure!(server.ips.len() == 2 && client.ips.len() == 2, "a pod lacks a family: {:?}", server.ips);
        for to in &server.ips {
            traffic::ping(&client, *to, &[])?;
        }
        // The outer header of IPv6 takes 70 bytes of 1500; 40 of IPv6 and 8 of ICMP come on top of what ping is given.
        traffic::ping(&client, server.ips[1], &["-M", "do", "-s", "1382"])?;
        obeys(&cluster, &server, [&client, &near])
    })
}

/// Each direction is denied, then allowed for one of two clients, in both families.
fn obeys(cluster: &Cluster, server: &Pod, clients: [&Pod; 2]) -> Result<()> {
    let expect = |state: &str, wants: [Answer; 2]| {
        let mut probes = Vec::new();
        for (from, want) in clients.into_iter().zip(wants) {
            for ip in &server.ips {
                for (by, port) in [(Protocol::Tcp, HTTP), (Protocol::Udp, UDP)] {
                    probes.push(Probe { from, to: SocketAddr::new(*ip, port), by, want, why: "in both families" });
                }
            }
        }
        traffic::expect(state, &probes)
    };
    let put = |name: &str, spec: Value| pods::apply(cluster, NAMESPACE, &[policy(name, &spec)]);
    let drop = |name: &str| cluster.kubectl(&["delete", "networkpolicy", name, "-n", NAMESPACE]);
    let role = |role: &str| json!({"matchLabels": {"role": role}});
    expect("everything open without a policy", [Answer::Open; 2])?;
    put("in", json!({"podSelector": role("server"), "policyTypes": ["Ingress"]}))?;
    expect("a server that nobody reaches", [Answer::Closed; 2])?;
    put("in", json!({"podSelector": role("server"), "ingress": [{"from": [{"podSelector": role("near")}]}]}))?;
    expect("a server that is open to one", [Answer::Closed, Answer::Open])?;
    drop("in")?;
    put("out", json!({"podSelector": {}, "policyTypes": ["Egress"]}))?;
    expect("pods that reach nobody", [Answer::Closed; 2])?;
    let to_server = json!([{"to": [{"podSelector": role("server")}]}]);
    put("client-out", json!({"podSelector": role("client"), "policyTypes": ["Egress"], "egress": to_server}))?;
    expect("one pod that reaches the server", [Answer::Open, Answer::Closed])?;
    drop("out")?;
    expect("both again, one by its policy and one without", [Answer::Open; 2])
}
