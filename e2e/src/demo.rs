//! The demonstration: starts a cluster of three nodes, installs Towpath, and shows traffic and a policy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::cluster::{self, Cluster, ClusterName, IpFamily, Spec};
use crate::prepare::in_parallel;
use crate::progress::Progress;
use crate::site::Site;
use crate::toolchain::Tools;
use crate::wait::wait_for;
use crate::{deploy, image};

/// Name of the demonstration's cluster.
pub const CLUSTER: &str = "demo";
const NODES: u8 = 3;
const CONFIG: &str = "manifests/samples/default.yaml";
const BOUND: Duration = Duration::from_secs(60);

/// Runs the demonstration. An earlier cluster of it is replaced: it always shows a first installation.
///
/// # Errors
/// When a step fails or has another result than expected.
pub fn run(site: &Site, progress: Progress) -> Result<()> {
    let (cluster, release) = in_parallel(|| fresh_cluster(site, progress), || image::build(site, &progress))?;
    deploy::deploy(&cluster, &release, &site.root().join(CONFIG))?;
    show(&cluster)?;
    print_next_steps(&cluster)
}

fn fresh_cluster(site: &Site, progress: Progress) -> Result<Cluster> {
    let tools = Tools::prepare(site, &progress)?;
    let name: ClusterName = CLUSTER.parse()?;
    if !cluster::leftovers(site, CLUSTER)?.is_empty() {
        progress.step("removing the cluster of an earlier demonstration");
        cluster::remove(site, CLUSTER)?;
    }
    Cluster::up(site, &tools, Spec { name, family: IpFamily::V4, nodes: (1..=NODES).collect() }, progress)
}

fn show(cluster: &Cluster) -> Result<()> {
    let step = |line: &str| cluster.progress().step(line);
    cluster.apply(include_str!("../assets/demo.yaml"))?;
    let pods = wait_for("ready pods of the demonstration", BOUND, || {
        let pods = cluster.list(&["pods", "-n", "demo"])?;
        let ready = pods.iter().filter(|pod| cluster::condition(pod, "Ready") == "True").count();
        Ok((ready == usize::from(NODES) + 2).then_some(pods))
    })?;
    step("pods are running on every node");
    println!("{}", cluster.kubectl(&["get", "pods", "-n", "demo", "-o", "wide"])?);
    let far = pods.iter().find(|pod| pod["metadata"]["labels"]["app"] == "server" && pod["spec"]["nodeName"] == "n3");
    let far = far.and_then(|pod| pod["status"]["podIP"].as_str()).context("no server on node n3")?;
    step(&format!("ping across nodes, from friend on n1 to {far} on n3"));
    println!("{}", cluster.kubectl(&["exec", "-n", "demo", "friend", "--", "/bin/ping", "-c", "3", "-W", "2", far])?);
    for client in ["friend", "stranger"] {
        wait_for(&format!("an answer to pod {client}"), BOUND, || Ok(reaches(cluster, client, far)?.then_some(())))?;
        step(&format!("without a policy {client} reaches the server"));
    }
    cluster.apply(include_str!("../assets/demo-policy.yaml"))?;
    step("applied the NetworkPolicy only-friends");
    wait_for("the policy to be in force", BOUND, || Ok((!reaches(cluster, "stranger", far)?).then_some(())))?;
    step("with the policy stranger is denied");
    ensure!(reaches(cluster, "friend", far)?, "the policy denies friend, which it should allow");
    step("with the policy friend still reaches the server");
    println!("\n{}", cluster.kubectl(&["get", "networkconfig,networknode"])?);
    Ok(())
}

/// Whether the pod `client` can open a TCP connection to the server.
fn reaches(cluster: &Cluster, client: &str, server: &str) -> Result<bool> {
    let target = format!("{server}:8080");
    let words = ["exec", "-n", "demo", client, "--", "/agnhost", "connect", &target, "--timeout=2s", "--protocol=tcp"];
    Ok(cluster.kubectl_raw(&words)?.status.success())
}

fn print_next_steps(cluster: &Cluster) -> Result<()> {
    let nodes = cluster.list(&["nodes"])?;
    let version =
        nodes.first().and_then(|node| node["status"]["nodeInfo"]["kubeletVersion"].as_str().map(str::to_owned));
    cluster.progress().step(format!("done: {} nodes of Kubernetes {}", nodes.len(), version.unwrap_or_default()));
    println!("The cluster keeps running. Use it:   export KUBECONFIG={}", cluster.kubeconfig().display());
    println!("                                     kubectl get pods -A -o wide");
    println!("Remove it:                           make cluster-down CLUSTER={CLUSTER}");
    Ok(())
}
