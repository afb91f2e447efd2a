//! Starts a cluster; what does not depend on something else starts in parallel.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::{Cluster, Component, Spec, coredns, down};
use crate::node::Node;
use crate::pki::Authority;
use crate::process::Running;
use crate::progress::Progress;
use crate::site::Site;
use crate::toolchain::Tools;
use crate::wait::wait_for;
use crate::{cgroup, underlay};

impl Cluster {
    /// Starts a cluster without a pod network: its nodes are registered and not Ready.
    ///
    /// # Errors
    /// When one of that name exists, or a component fails: the message names it and shows the end of its log. What
    /// was started keeps running, to be inspected, until [`down::remove`].
    pub fn up(site: &Site, tools: &Tools, spec: Spec, progress: Progress) -> Result<Self> {
        let name = spec.name.clone();
        let cluster = Self { site: site.clone(), tools: tools.clone(), spec, progress };
        let left = down::leftovers(site, name.as_str())?;
        if !left.is_empty() {
            bail!(
                "cluster {name} or parts of it exist already ({} and {} more): make cluster-down CLUSTER={name} removes them",
                left[0],
                left.len() - 1
            );
        }
        cluster.bring_up().with_context(|| {
            let logs = cluster.dir().join("log");
            format!(
                "cluster {name} did not start; its logs are in {} until make cluster-down CLUSTER={name}",
                logs.display()
            )
        })?;
        Ok(cluster)
    }

    fn bring_up(&self) -> Result<()> {
        let progress = self.progress();
        let (count, name) = (self.spec().nodes.len(), self.name());
        progress.step(format!("starting cluster {name}: {count} nodes, Kubernetes {}", crate::toolchain::KUBERNETES));
        let authority = self.lay_out()?;
        let mut running =
            vec![self.start(Component::Etcd)?, self.start(Component::ApiServer)?, self.start(Component::Forward)?];
        let nodes = self.nodes();
        for node in &nodes {
            node.create(&authority)?;
            running.push(node.start()?);
        }
        let check = |running: &[Running]| running.iter().try_for_each(Running::check);
        let port = wait_for("the loopback port", Duration::from_secs(10), || {
            check(&running)?;
            Ok(fs::read_to_string(self.port_file()).ok())
        })?;
        authority.kubeconfig("admin", &format!("https://127.0.0.1:{port}"), &self.kubeconfig())?;
        self.wait_api(|| check(&running))?;
        progress.step("the API server is ready");
        running.push(self.start(Component::ControllerManager)?);
        running.push(self.start(Component::Scheduler)?);
        nodes.iter().try_for_each(Node::admit)?;
        self.apply(&coredns::manifests(self.spec().family))?;
        self.wait_registered(&nodes, || check(&running))?;
        wait_for("the default ServiceAccount", Duration::from_secs(60), || {
            check(&running)?;
            self.get(&["serviceaccount", "default", "-n", "default"])
        })?;
        progress.step(format!(
            "cluster {name} is running and has no pod network yet: export KUBECONFIG={}",
            self.kubeconfig().display()
        ));
        Ok(())
    }

    fn lay_out(&self) -> Result<Authority> {
        for folder in ["log", "pid", "pki", "etcd", "node"] {
            let dir = self.dir().join(folder);
            fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        }
        self.save()?;
        cgroup::create(&cgroup::cluster_group(self.name()))?;
        underlay::create(self.name(), self.spec().family)?;
        underlay::join(self.name(), "cp", underlay::CONTROL_PLANE, self.spec().family)?;
        let authority = Authority::create(&self.pki_dir())?;
        self.issue(&authority)?;
        Ok(authority)
    }
}
