//! The operator restores its children, runs as one leader of two replicas, and writes nothing when nothing changes.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use towpath_e2e::cluster::Cluster;
use towpath_e2e::deploy;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, READY, Scenario};
use crate::pods::SharedPods;
use crate::status::{self, NAMESPACE};
use crate::traffic::Stream;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario { name: "an edited or deleted child of the operator is restored, with an Event", run: children },
    Scenario { name: "one operator leads, the other stands by and takes over", run: takes_over },
    Scenario { name: "nobody writes to an idle cluster", run: idle },
];

const DAEMON_SET: [&str; 4] = ["daemonset", "towpath-agent", "-n", NAMESPACE];
/// Time for the operator to restore a child.
const REPAIR: Duration = Duration::from_secs(20);

fn container(cluster: &Cluster) -> Result<Value> {
    let set = cluster.get(&DAEMON_SET)?.unwrap_or_default();
    Ok(set["spec"]["template"]["spec"]["containers"][0].clone())
}

fn children(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let shared = SharedPods::pods(&cluster)?;
    let stream = Stream::start(&shared.client, shared.far()?.ip)?;
    let want = container(&cluster)?;
    // Harmful edits that look harmless: another command, and a privilege that nobody needs.
    for (patch, words) in [
        (r#"[{"op":"replace","path":"/spec/template/spec/containers/0/command/1","value":"teardown-not"}]"#, "command"),
        (r#"[{"op":"add","path":"/spec/template/spec/hostPID","value":true}]"#, "hostPID"),
    ] {
        cluster.kubectl(&["patch", "daemonset", "towpath-agent", "-n", NAMESPACE, "--type=json", "-p", patch])?;
        wait_for("the DaemonSet as it was", REPAIR, || {
            let set = status::object(&cluster, &DAEMON_SET)?;
            let host_pid = set["spec"]["template"]["spec"]["hostPID"] == true;
            Ok((container(&cluster)? == want && !host_pid).then_some(()))
        })
        .with_context(|| format!("after an edit of {words}"))?;
        status::wait_event(&cluster, "DriftRepaired", &["DaemonSet towpath-agent", words])?;
    }
    let map = config_map(&cluster)?;
    cluster.kubectl(&["delete", "configmap", &map, "-n", NAMESPACE])?;
    wait_for("the ConfigMap", REPAIR, || cluster.get(&["configmap", &map, "-n", NAMESPACE]))?;
    status::wait_event(&cluster, "DriftRepaired", &["ConfigMap", &map])?;
    cluster.kubectl(&["delete", "daemonset", "towpath-agent", "-n", NAMESPACE])?;
    wait_for("the DaemonSet", REPAIR, || cluster.get(&DAEMON_SET))?;
    ensure!(container(&cluster)? == want, "the DaemonSet was restored differently");
    deploy::wait_ready(&cluster, READY)?;
    stream.finish()
}

fn config_map(cluster: &Cluster) -> Result<String> {
    let set = status::object(cluster, &DAEMON_SET)?;
    let volumes = set["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    let name = volumes.iter().find_map(|volume| volume["configMap"]["name"].as_str().map(str::to_owned));
    name.context("the agents have no ConfigMap")
}

/// Who holds the lease.
fn leader(cluster: &Cluster) -> Result<String> {
    let lease = status::object(cluster, &["lease", "towpath-operator", "-n", NAMESPACE])?;
    Ok(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned())
}

fn takes_over(harness: &Harness) -> Result<()> {
    let cluster = harness.network()?;
    let first = leader(&cluster)?;
    let label = "app.kubernetes.io/name=towpath-operator";
    let pods = cluster.list(&["pods", "-n", NAMESPACE, "-l", label])?;
    ensure!(pods.len() == 2, "{} operators", pods.len());
    ensure!(pods.iter().all(|pod| status::condition(pod, "Ready").status == "True"), "one of them is not Ready");
    let leads = |pod: &&Value| pod["metadata"]["name"].as_str().is_some_and(|name| first.starts_with(name));
    let pod = pods.iter().find(leads).with_context(|| format!("the lease is held by {first}, which is no pod"))?;
    let name = pod["metadata"]["name"].as_str().context("a name")?;
    cluster.kubectl(&["delete", "pod", "-n", NAMESPACE, name, "--wait=false"])?;
    wait_for("another leader", Duration::from_secs(30), || {
        let now = leader(&cluster)?;
        Ok((!now.is_empty() && now != first).then_some(()))
    })?;
    let map = config_map(&cluster)?;
    cluster.kubectl(&["delete", "configmap", &map, "-n", NAMESPACE])?;
    wait_for("work of the new leader", REPAIR, || cluster.get(&["configmap", &map, "-n", NAMESPACE])).map(drop)
}

/// Versions of everything that Towpath writes.
fn versions(cluster: &Cluster) -> Result<Vec<String>> {
    let kinds = "networkconfigs,networknodes,daemonsets,configmaps,events.events.k8s.io";
    let mut objects = cluster.list(&[kinds, "-n", NAMESPACE])?;
    objects.extend(
        cluster
            .list(&["events.events.k8s.io", "-n", "default"])?
            .into_iter()
            .filter(|event| event["regarding"]["kind"] == "NetworkConfig"),
    );
    let version = |object: &Value| {
        format!("{} {} {}", object["kind"], object["metadata"]["name"], object["metadata"]["resourceVersion"])
    };
    Ok(objects.iter().map(version).collect())
}

/// Agents renew their status every five minutes, so the test waits for a quiet time, which must come soon.
fn idle(harness: &Harness) -> Result<()> {
    const QUIET: Duration = Duration::from_secs(15);
    let cluster = harness.network()?;
    deploy::wait_ready(&cluster, READY)?;
    let mut last = (versions(&cluster)?, Instant::now());
    let mut changed = String::new();
    let rested = wait_for("15 s without a write", Duration::from_secs(75), || {
        let now = versions(&cluster)?;
        if now != last.0 {
            changed =
                now.iter().filter(|version| !last.0.contains(version)).map(|version| format!("{version}; ")).collect();
            last = (now, Instant::now());
        }
        Ok((last.1.elapsed() >= QUIET).then_some(()))
    });
    rested.with_context(|| format!("the last to be written: {changed}"))
}
