//! The hands of the daemon: carries out what the node's state machine decided.

use std::{
    error::Error,
    path::Path,
    sync::{Arc, mpsc::Sender},
};

use anyhow::Context;
use kube::Client;
use tokio::sync::watch;
use towpath_core::model::NodeName;
use towpath_dataplane::local::{NodeState, Paths};
use tracing::{error, info};

use crate::{
    install::{self, InstallError},
    kernel::Job,
    metrics::Metrics,
    node::{Effect, Node},
    publish::{self, NodeWish, Report},
};

/// The plugin in our image.
const IMAGE_PLUGIN: &str = "/opt/towpath/cni/towpath";
/// Where the runtime looks for plugins: containerd's and CRI-O's default.
const PLUGIN_DIR: &str = "/opt/cni/bin";
/// Where it looks for configuration.
pub(crate) const CONFIG_DIR: &str = "/etc/cni/net.d";

/// Everything that an effect needs.
#[derive(Debug)]
pub struct Hands {
    paths: Paths,
    jobs: Sender<Job>,
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Option<String>>,
    wishes: watch::Sender<Option<NodeWish>>,
    reports: watch::Sender<Option<Report>>,
}

impl Hands {
    /// Starts the tasks that write to the API server.
    #[must_use]
    pub fn new(
        client: Client,
        me: NodeName,
        paths: Paths,
        jobs: Sender<Job>,
        metrics: Arc<Metrics>,
        readiness: watch::Sender<Option<String>>,
    ) -> Self {
        let (wishes, to_write) = watch::channel(None);
        tokio::spawn(publish::keep_node(client.clone(), me.clone(), to_write));
        let (reports, to_report) = watch::channel(None);
        tokio::spawn(publish::keep_report(client, me, to_report));
        Self { paths, jobs, metrics, readiness, wishes, reports }
    }

    /// Carries one effect out.
    ///
    /// # Errors
    /// Only when the kernel's thread is gone: then the process had better start anew.
    pub fn carry_out(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Job(job) => self.jobs.send(job).ok().context("the kernel's thread has ended")?,
            // A plugin that has gone away undoes its work itself.
            Effect::Reply(to, reply) => drop(to.send(reply)),
            Effect::Node(wish) => drop(self.wishes.send(Some(wish))),
            Effect::Report(report) => {
                self.reports.send_if_modified(|last| {
                    let changed = last.as_ref() != Some(&*report);
                    *last = Some(*report);
                    changed
                });
            }
            Effect::Open(state) => self.open(&state),
            Effect::Waited(time) => self.metrics.pod_wait_seconds.observe(time.as_secs_f64()),
            Effect::Applied { took, failed } => {
                self.metrics.apply_seconds.observe(took.as_secs_f64());
                self.metrics.apply_failures.inc_by(failed);
            }
        }
        Ok(())
    }

    /// Lets pods in: values first, then the plugin, and last the list that makes the node Ready.
    fn open(&self, state: &NodeState) {
        if let Err(error) = state.write(&self.paths) {
            error!(error = &error as &dyn Error, "pods cannot be added: the node's values are not written");
            return;
        }
        let install = || -> Result<(), InstallError> {
            install::plugin(Path::new(IMAGE_PLUGIN), Path::new(PLUGIN_DIR))?;
            install::write_conflist(Path::new(CONFIG_DIR))
        };
        match install() {
            Ok(()) => info!(mtu = state.mtu, "pods can be added"),
            Err(error) => error!(error = &error as &dyn Error, "pods cannot be added: the CNI plugin is not installed"),
        }
    }

    /// Shows how the node stands to those who ask.
    pub fn show(&self, node: &Node) {
        let why = node.not_ready();
        let set = |gauge: &prometheus_client::metrics::gauge::Gauge, n: usize| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX))
        };
        set(&self.metrics.ready, usize::from(why.is_none()));
        set(&self.metrics.endpoints, node.endpoints());
        set(&self.metrics.policies, node.policies());
        set(&self.metrics.peers, node.peers());
        self.metrics.repairs.inc_by(node.drift().repairs - self.metrics.repairs.get());
        self.readiness.send_if_modified(|last| {
            let changed = *last != why;
            *last = why;
            changed
        });
    }
}
