//! The effect executor: carries out what the node decides.

use std::sync::{Arc, mpsc::Sender};

use anyhow::Context;
use kube::Client;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{
    mpsc::{self, UnboundedSender},
    watch,
};
use towpath_core::model::NodeName;
use towpath_node::{
    CniNetwork, Effect, Measurement, NodePatch, StatusUpdate, Summary, denials::DenialReport, explain::Denial,
};

use crate::{
    cni_server::PendingRequests,
    conntrack::ConntrackQueues,
    kernel::Job,
    log_lines,
    metrics::{DenialLabels, Metrics},
    pod_events, publish,
};

/// Where effects go, apart from the API server.
#[derive(Debug)]
pub struct EffectHandles {
    /// To the kernel thread.
    pub kernel: Sender<Job>,
    /// To the threads that work on conntrack entries.
    pub conntrack: ConntrackQueues,
    /// To the thread that writes the CNI files.
    pub cni_files: Sender<CniNetwork>,
    /// What `/metrics` serves.
    pub metrics: Arc<Metrics>,
    /// To `/readyz`.
    pub readiness: watch::Sender<Option<String>>,
}

/// Everything that an effect needs. Nothing here blocks.
#[derive(Debug)]
pub struct EffectExecutor {
    handles: EffectHandles,
    /// The requests of the CNI plugin that are not answered yet.
    pub pending: PendingRequests,
    patches: watch::Sender<Option<NodePatch>>,
    updates: watch::Sender<Option<StatusUpdate>>,
    events: UnboundedSender<Denial>,
}

impl EffectExecutor {
    /// Starts the tasks that write to the API server.
    #[must_use]
    pub fn new(client: Client, me: NodeName, handles: EffectHandles) -> Self {
        let (patches, latest) = watch::channel(None);
        tokio::spawn(publish::patch_node_on_change(client.clone(), me.clone(), latest));
        let (updates, latest) = watch::channel(None);
        tokio::spawn(publish::update_status_on_change(client.clone(), me.clone(), latest));
        let (events, denials) = mpsc::unbounded_channel();
        tokio::spawn(pod_events::emit(client, me, denials));
        Self { handles, pending: PendingRequests::default(), patches, updates, events }
    }

    /// Carries out one effect.
    ///
    /// # Errors
    /// Only if a thread has ended: then the process should end, too, and be restarted.
    pub fn execute(&mut self, effect: Effect) -> anyhow::Result<()> {
        match effect {
            Effect::Kernel(job) => {
                self.handles.kernel.send(Job::Execute(job)).ok().context("the kernel thread has ended")?;
            }
            Effect::Reevaluate(request) => {
                let sent = self.handles.conntrack.reevaluate.send(request);
                sent.ok().context("the policy re-evaluation thread has ended")?;
            }
            Effect::Flush(request) => {
                self.handles.conntrack.flush.send(request).ok().context("the conntrack flush thread has ended")?;
            }
            Effect::InstallCni(network) => {
                self.handles.cni_files.send(network).ok().context("the CNI install thread has ended")?;
            }
            Effect::Reply(ticket, reply) => self.pending.reply(ticket, reply),
            Effect::PatchNode(patch) => drop(self.patches.send(Some(patch))),
            Effect::UpdateStatus(update) => {
                self.updates.send_if_modified(|last| {
                    let changed = last.as_ref() != Some(&*update);
                    *last = Some(*update);
                    changed
                });
            }
            Effect::ReportPackets(report) => self.report(report),
            Effect::Measure(measurement) => self.measure(measurement),
            Effect::Log(line) => log_lines::write(&line),
        }
        Ok(())
    }

    /// Logs, counts and emits Events about packets that policies dropped or logged.
    fn report(&self, report: DenialReport) {
        report.denied.iter().for_each(log_lines::write_denied);
        report.logged.iter().for_each(log_lines::write_logged);
        for (series, packets) in report.counts {
            self.handles.metrics.denied_packets.get_or_create(&DenialLabels::from(series)).inc_by(packets);
        }
        self.handles.metrics.deny_log_lost.inc_by(report.lost);
        for denial in report.events {
            // The task ends with this sender.
            drop(self.events.send(denial));
        }
    }

    fn measure(&self, measurement: Measurement) {
        let metrics = &self.handles.metrics;
        match measurement {
            Measurement::PodWait(time) => metrics.pod_wait_seconds.observe(time.as_secs_f64()),
            Measurement::PolicyChange(time) => metrics.policy_change_seconds.observe(time.as_secs_f64()),
            Measurement::Apply { took, failed } => {
                metrics.apply_seconds.observe(took.as_secs_f64());
                metrics.apply_failures.inc_by(failed);
            }
            Measurement::Revoked(count) => drop(metrics.connections_revoked.inc_by(count)),
        }
    }

    /// Sets the gauges and the readiness.
    pub fn show(&self, summary: Summary) {
        let Summary { not_ready, endpoints, policies, peers, repairs } = summary;
        let metrics = &self.handles.metrics;
        let set = |gauge: &Gauge, n: usize| gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        set(&metrics.ready, usize::from(not_ready.is_none()));
        set(&metrics.endpoints, endpoints);
        set(&metrics.policies, policies);
        set(&metrics.peers, peers);
        metrics.repairs.inc_by(repairs - metrics.repairs.get());
        self.handles.readiness.send_if_modified(|last| {
            let changed = *last != not_ready;
            *last = not_ready;
            changed
        });
    }
}
