//! Scenarios of the cluster itself: they need no pod network.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use towpath_e2e::cluster::{self, Component, condition};
use towpath_e2e::run;
use towpath_e2e::wait::wait_for;

use crate::harness::{Harness, Scenario, shared_name};

/// On the shared cluster, before it has a network.
pub(crate) const FRESH: &[Scenario] = &[
    Scenario { name: "the nodes of a fresh cluster are not Ready for want of a network", run: fresh_is_not_ready },
    Scenario { name: "a second cluster of the same name is rejected, and the first keeps running", run: taken_name },
    Scenario { name: "the API server restarts with all its objects", run: api_server_returns },
    Scenario { name: "a node is added to a running cluster and removed again", run: add_and_remove },
];

/// Beside the shared cluster.
pub(crate) const SEPARATE: &[Scenario] = &[
    Scenario {
        name: "a second cluster runs beside the first, and its removal leaves the first alone",
        run: side_by_side,
    },
    Scenario { name: "removal leaves nothing of a cluster whose processes were killed", run: removal_after_kill },
    Scenario { name: "removal leaves nothing of a cluster whose start was killed", run: removal_after_killed_start },
    Scenario { name: "a component that fails is named with the end of its log", run: failing_component },
];

/// Name of a cluster that only one scenario uses.
pub(crate) fn own() -> String {
    format!("{}-own", shared_name())
}

fn fresh_is_not_ready(harness: &Harness) -> Result<()> {
    let cluster = harness.shared()?;
    let nodes = cluster.list(&["nodes"])?;
    ensure!(nodes.len() == 3, "{} nodes", nodes.len());
    for node in &nodes {
        ensure!(condition(node, "Ready") == "False", "a node without a network has Ready={}", condition(node, "Ready"));
    }
    // As a person would: kubectl in the machine's own shell, with the kubeconfig.
    let mut kubectl = Command::new(cluster.tools().kubectl());
    let said = run::output(kubectl.env("KUBECONFIG", cluster.kubeconfig()).args(["get", "nodes", "--no-headers"]))?;
    ensure!(said.matches("NotReady").count() == 3, "kubectl get nodes prints {said}");
    Ok(())
}

fn taken_name(harness: &Harness) -> Result<()> {
    let cluster = harness.shared()?;
    let up = Command::new(harness.launcher()).args(["up", "--name", cluster.name()]).output()?;
    let said = String::from_utf8_lossy(&up.stderr);
    ensure!(!up.status.success() && said.contains("exist already"), "up printed {said}");
    cluster.kubectl(&["get", "--raw=/readyz"]).map(drop)
}

fn api_server_returns(harness: &Harness) -> Result<()> {
    let cluster = harness.shared()?;
    cluster.kubectl(&["create", "configmap", "memory", "-n", "default"])?;
    cluster.stop(Component::ApiServer)?;
    ensure!(
        !cluster.kubectl_raw(&["get", "--raw=/readyz", "--request-timeout=2s"])?.status.success(),
        "the API server answers although it was stopped"
    );
    let running = cluster.start(Component::ApiServer)?;
    cluster.wait_api(|| running.check())?;
    cluster.kubectl(&["delete", "configmap", "memory", "-n", "default"]).map(drop)
}

fn add_and_remove(harness: &Harness) -> Result<()> {
    let mut cluster = harness.shared()?;
    let name = cluster.add_node()?;
    ensure!(name == "n4", "the fourth node is called {name}");
    let said = cluster.node(&name)?.exec(&["hostname"])?;
    ensure!(said.trim() == name, "its host name is {said}");
    cluster.remove_node(&name)?;
    ensure!(cluster.get(&["node", &name])?.is_none(), "its Node still exists");
    ensure!(cluster.node(&name).is_err(), "the cluster still lists it");
    ensure!(
        !cluster::leftovers(harness.site()?, cluster.name())?.iter().any(|left| left.contains(".n4")),
        "it left something"
    );
    Ok(())
}

fn side_by_side(harness: &Harness) -> Result<()> {
    let first = harness.shared()?;
    harness.with_cleanup(&own(), || {
        let second = harness.fresh(&own(), 1)?;
        second.kubectl(&["create", "namespace", "only-here"])?;
        ensure!(first.get(&["namespace", "only-here"])?.is_none(), "both kubeconfigs lead to the same cluster");
        let (one, two) = (first.node("n1")?, second.node("n1")?);
        ensure!(one.addresses() == two.addresses(), "the same addresses serve both");
        // Loading reaches the named cluster's nodes and no others.
        let archive = second.tools().images().first().cloned().context("there are test images")?;
        ensure!(second.load(&archive)? == ["towpath.local/pause:1"], "the pause image loads");
        Ok(())
    })?;
    ensure!(cluster::leftovers(harness.site()?, &own())?.is_empty(), "the second cluster left something");
    first.kubectl(&["get", "--raw=/readyz"]).map(drop)
}

fn removal_after_kill(harness: &Harness) -> Result<()> {
    harness.with_cleanup(&own(), || {
        let cluster = harness.fresh(&own(), 2)?;
        cluster.stop(Component::Etcd)?;
        let first = cluster.node("n1")?.init_pid()?;
        kill(Pid::from_raw(first), Signal::SIGKILL).context("kill a node's first process")?;
        wait_for("the end of the node", Duration::from_secs(10), || {
            Ok(cluster.node("n1")?.init_pid().is_err().then_some(()))
        })?;
        fs::remove_file(cluster.dir().join("cluster.json")).context("lose the record")
    })?;
    nothing_left(harness)
}

fn removal_after_killed_start(harness: &Harness) -> Result<()> {
    let site = harness.site()?;
    harness.with_cleanup(&own(), || {
        let mut up = Command::new(harness.launcher());
        let mut up =
            up.args(["up", "--name", &own(), "--nodes", "1"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let started = wait_for("the node's first process", Duration::from_secs(60), || {
            Ok(site.cluster_dir(&own()).join("pid/n1-init").exists().then_some(()))
        });
        up.kill().context("kill the start")?;
        up.wait()?;
        started
    })?;
    nothing_left(harness)
}

fn failing_component(harness: &Harness) -> Result<()> {
    let fake = tempfile::tempdir()?;
    let containerd = fake.path().join("containerd");
    fs::write(&containerd, "#!/bin/sh\necho no space left in the hold\nexit 7\n")?;
    fs::set_permissions(&containerd, fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", fake.path().display(), std::env::var("PATH")?);
    let said = harness.with_cleanup(&own(), || {
        let up = Command::new(harness.launcher())
            .args(["up", "--name", &own(), "--nodes", "1"])
            .env("PATH", path)
            .output()?;
        ensure!(!up.status.success(), "the cluster started with a broken containerd");
        Ok(String::from_utf8_lossy(&up.stderr).into_owned())
    })?;
    for part in ["n1 ended", "containerd ended", "exit status: 7", "no space left in the hold"] {
        ensure!(said.contains(part), "the error does not contain {part:?}: {said}");
    }
    nothing_left(harness)
}

fn nothing_left(harness: &Harness) -> Result<()> {
    let left = cluster::leftovers(harness.site()?, &own())?;
    ensure!(left.is_empty(), "still there: {}", left.join(", "));
    Ok(())
}
