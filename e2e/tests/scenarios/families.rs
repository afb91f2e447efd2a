//! Both IP families, on a cluster of its own.

use std::net::SocketAddr;

use anyhow::{Result, anyhow, ensure};
use serde_json::json;
use towpath_e2e::cluster::{Cluster, IpFamily};
use towpath_e2e::deploy;

use crate::cluster::own;
use crate::frame::{Frame, READY, Scenario};
use crate::pods::{self, HTTP, Pod, UDP};
use crate::traffic::{self, Answer, Probe, Protocol};

pub(crate) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "pods of a cluster with both IP families talk and obey in both", play: both }];

const NAMESPACE: &str = "both";

fn both(frame: &Frame) -> Result<()> {
    frame.with_cleanup(&own(), || {
        let cluster = frame.fresh_with(&own(), 2, IpFamily::Dual)?;
        frame.install_on(&cluster)?;
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
            pods::pod("near", "client", "n2", &pods::client()),
        ];
        let made = pods::start(&cluster, NAMESPACE, &wanted)?;
        let [server, client, near] = made.try_into().map_err(|_| anyhow!("three pods"))?;
        ensure!(server.ips.len() == 2 && client.ips.len() == 2, "a pod lacks a family: {:?}", server.ips);
        for to in &server.ips {
            traffic::ping(&client, *to, &[])?;
        }
        // The outer header of IPv6 takes 70 bytes of 1500; 40 of IPv6 and 8 of ICMP come on top of what ping is given.
        traffic::ping(&client, server.ips[1], &["-M", "do", "-s", "1382"])?;
        obeys(&cluster, &server, &[&client, &near])
    })
}

fn obeys(cluster: &Cluster, server: &Pod, clients: &[&Pod]) -> Result<()> {
    let expect = |state, want| {
        let mut probes = Vec::new();
        for from in clients {
            for ip in &server.ips {
                for (by, port) in [(Protocol::Tcp, HTTP), (Protocol::Udp, UDP)] {
                    probes.push(Probe { from, to: SocketAddr::new(*ip, port), by, want, why: "in both families" });
                }
            }
        }
        traffic::expect(state, &probes)
    };
    expect("everything open without a policy", Answer::Open)?;
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"role": "server"}}, "policyTypes": ["Ingress"]},
    });
    pods::apply(cluster, NAMESPACE, &[policy])?;
    expect("everything closed by an empty policy", Answer::Closed)?;
    cluster.kubectl(&["delete", "networkpolicy", "closed", "-n", NAMESPACE])?;
    expect("everything open again", Answer::Open)
}
