//! The hands of the daemon: carries out what the node's state machine decided.

use std::{
    path::Path,
    sync::{Arc, mpsc::Sender},
};

use anyhow::Context;
use kube::Client;
use tokio::sync::{
    mpsc::{self, UnboundedSender},
    watch,
};
use towpath_core::model::NodeName;
use towpath_local::{NodeState, Paths};
use tracing::info;

use crate::{
    connections::Queues,
    denials::{Denial, Findings, Line, Sighting},
    input::Input,
    install,
    kernel::Job,
    metrics::Metrics,
    node::{Effect, Node},
    pod_events,
    publish::{self, NodeWish, Report},
};

/// The plugin in our image.
const IMAGE_PLUGIN: &str = "/opt/towpath/cni/towpath";
/// Where the runtime looks for plugins: containerd's and CRI-O's default.
const PLUGIN_DIR: &str = "/opt/cni/bin";
/// Where it looks for configuration.
pub(crate) const CONFIG_DIR: &str = "/etc/cni/net.d";

/// Where effects go, apart from the API server.
#[derive(Debug)]
pub struct Edges {
    /// The node-local files.
    pub paths: Paths,
    /// The kernel's thread.
    pub jobs: Sender<Job>,
    /// The threads that look after connections.
    pub connections: Queues,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who asks whether the node is ready.
    pub readiness: watch::Sender<Option<String>>,
    /// Back to the daemon.
    pub inputs: UnboundedSender<Input>,
}

/// Everything that an effect needs.
#[derive(Debug)]
pub struct Hands {
    edges: Edges,
    wishes: watch::Sender<Option<NodeWish>>,
    reports: watch::Sender<Option<Report>>,
    events: UnboundedSender<Denial>,
}

impl Hands {
    /// Starts the tasks that write to the API server.
    #[must_use]
    pub fn new(client: Client, me: NodeName, edges: Edges) -> Self {
        let (wishes, to_write) = watch::channel(None);
        tokio::spawn(publish::keep_node(client.clone(), me.clone(), to_write));
        let (reports, to_report) = watch::channel(None);
        tokio::spawn(publish::keep_report(client.clone(), me.clone(), to_report));
        let (events, to_tell) = mpsc::unbounded_channel();
        tokio::spawn(pod_events::tell(client, me, to_tell));
        Self { edges, wishes, reports, events }
    }

    /// Carries one effect out.
    ///
    /// # Errors
    /// Only when the kernel's thread is gone: then the process had better start anew.
    pub fn carry_out(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Job(job) => self.edges.jobs.send(job).ok().context("the kernel's thread has ended")?,
            Effect::Review(order) => {
                self.edges.connections.reviews.send(order).ok().context("the thread of reviews has ended")?;
            }
            Effect::Clear(clear) => {
                self.edges.connections.clears.send(clear).ok().context("the thread of clearing has ended")?;
            }
            Effect::Cut(count) => drop(self.edges.metrics.connections_cut.inc_by(count)),
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
            Effect::Open(state) => drop(self.edges.inputs.send(Input::Opened(self.open(&state)))),
            Effect::Denied(found) => self.tell(found),
            Effect::Enforced(time) => self.edges.metrics.policy_change_seconds.observe(time.as_secs_f64()),
            Effect::Waited(time) => self.edges.metrics.pod_wait_seconds.observe(time.as_secs_f64()),
            Effect::Applied { took, failed } => {
                self.edges.metrics.apply_seconds.observe(took.as_secs_f64());
                self.edges.metrics.apply_failures.inc_by(failed);
            }
        }
        Ok(())
    }

    /// Tells of packets that policies dropped or logged.
    fn tell(&self, found: Findings) {
        found.lines.iter().for_each(write_denied);
        found.logged.iter().for_each(write_logged);
        for (series, packets) in found.counts {
            self.edges.metrics.denied_packets.get_or_create(&series).inc_by(packets);
        }
        self.edges.metrics.deny_log_lost.inc_by(found.lost);
        for denial in found.events {
            // The task ends with this sender.
            drop(self.events.send(denial));
        }
    }

    /// Lets pods in: values first, then the plugin, and last the list that makes the node Ready.
    fn open(&self, state: &NodeState) -> anyhow::Result<()> {
        state.write(&self.edges.paths)?;
        install::plugin(Path::new(IMAGE_PLUGIN), Path::new(PLUGIN_DIR))?;
        Ok(install::write_conflist(Path::new(CONFIG_DIR))?)
    }

    /// Shows how the node stands to those who ask.
    pub fn show(&self, node: &Node) {
        let why = node.not_ready();
        let set = |gauge: &prometheus_client::metrics::gauge::Gauge, n: usize| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX))
        };
        set(&self.edges.metrics.ready, usize::from(why.is_none()));
        set(&self.edges.metrics.endpoints, node.endpoints());
        set(&self.edges.metrics.policies, node.policies());
        set(&self.edges.metrics.peers, node.peers());
        self.edges.metrics.repairs.inc_by(node.drift().repairs - self.edges.metrics.repairs.get());
        self.edges.readiness.send_if_modified(|last| {
            let changed = *last != why;
            *last = why;
            changed
        });
    }
}

/// Writes a line of the log about what was dropped.
fn write_denied(line: &Line<Denial>) {
    match line {
        Line::First(denial, packets) => {
            let Denial { pod, direction, peer, carried, cause } = denial;
            info!(%pod, %direction, %peer, %carried, %cause, packets, "packets denied");
        }
        Line::Again(denial, packets) => {
            let Denial { pod, direction, peer, carried, cause } = denial;
            info!(%pod, %direction, %peer, %carried, %cause, packets, "packets denied, still");
        }
        Line::Others(packets) => info!(packets, "packets denied, of too many kinds to name each"),
    }
}

/// Writes a line of the log about what rules log.
fn write_logged(line: &Line<Sighting>) {
    match line {
        Line::First(sighting, packets) => {
            let Sighting { pod, direction, peer, carried, cause: by } = sighting;
            info!(%pod, %direction, %peer, %carried, %by, packets, "policy logged");
        }
        Line::Again(sighting, packets) => {
            let Sighting { pod, direction, peer, carried, cause: by } = sighting;
            info!(%pod, %direction, %peer, %carried, %by, packets, "policy logged, still");
        }
        Line::Others(packets) => info!(packets, "policy logged packets of too many kinds to name each"),
    }
}
