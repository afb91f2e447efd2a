//! The agent's metrics, in the OpenMetrics text format. Their number is bounded: the only label with an object's name is a
//! policy's, of which there are at most a hundred series.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use towpath_node::denials::DenialSeries;

/// The labels of a series of denied packets.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DenialLabels {
    /// The policy's namespace; empty without a policy.
    pub namespace: String,
    /// The policy's name; `other` beyond the bound.
    pub policy: String,
    /// `ingress` or `egress`.
    pub direction: String,
}

impl From<DenialSeries> for DenialLabels {
    fn from(DenialSeries { namespace, policy, direction }: DenialSeries) -> Self {
        Self { namespace, policy, direction }
    }
}

/// The agent's metrics, all named `towpath_agent_…`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Wanted overlay peers of all families.
    pub peers: Gauge,
    /// Pod interfaces on this node.
    pub endpoints: Gauge,
    /// Policies of the cluster.
    pub policies: Gauge,
    /// 1 if pods can be added, else 0.
    pub ready: Gauge,
    /// Kernel objects of ours that another process changed and the agent repaired.
    pub repairs: Counter,
    /// Established connections that were revoked, because policies deny them now.
    pub connections_revoked: Counter,
    /// Changes that the kernel rejected; each is tried again.
    pub apply_failures: Counter,
    /// From the start of a change to its commit in the kernel.
    pub apply_seconds: Histogram,
    /// How long the start of a pod waited for its rules.
    pub pod_wait_seconds: Histogram,
    /// From the arrival of a change that concerns policy to its commit in the kernel.
    pub policy_change_seconds: Histogram,
    /// Packets that policies dropped, of those that were logged.
    pub denied_packets: Family<DenialLabels, Counter>,
    /// Logged packets that were not evaluated.
    pub deny_log_lost: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        // 1 ms to 16 s: a pod's rules take about 10 ms, and the plugin gives up after 10 s.
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let mut metrics = Self {
            registry: Registry::with_prefix("towpath_agent"),
            peers: Gauge::default(),
            endpoints: Gauge::default(),
            policies: Gauge::default(),
            ready: Gauge::default(),
            repairs: Counter::default(),
            connections_revoked: Counter::default(),
            apply_failures: Counter::default(),
            apply_seconds: seconds(),
            pod_wait_seconds: seconds(),
            // Narrow around 10 ms, the goal for nearly all of them.
            policy_change_seconds: Histogram::new([
                0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            ]),
            denied_packets: Family::default(),
            deny_log_lost: Counter::default(),
        };
        let r = &mut metrics.registry;
        r.register("peers", "Wanted overlay peers of all families", metrics.peers.clone());
        r.register("endpoints", "Pod interfaces on this node", metrics.endpoints.clone());
        r.register("policies", "Policies of the cluster", metrics.policies.clone());
        r.register("ready", "1 if pods can be added to the node", metrics.ready.clone());
        r.register(
            "repairs",
            "Kernel objects of ours that another process changed and the agent repaired",
            metrics.repairs.clone(),
        );
        r.register(
            "connections_cut",
            "Established connections that were revoked, because policies deny them now",
            metrics.connections_revoked.clone(),
        );
        r.register(
            "denied_packets",
            "Packets that policies dropped, of those that were logged: at most 10 per second and chain. A packet counts for the first three policies that isolate its pod; further ones, and policies after the first 96, count as policy other",
            metrics.denied_packets.clone(),
        );
        r.register(
            "deny_log_lost",
            "Logged packets that the kernel had no room for, or that exceeded the rate at which the agent evaluates them",
            metrics.deny_log_lost.clone(),
        );
        r.register("apply_failures", "Changes that the kernel rejected", metrics.apply_failures.clone());
        let seconds = Unit::Seconds;
        r.register_with_unit(
            "apply",
            "From the start of a change to its commit in the kernel",
            seconds.clone(),
            metrics.apply_seconds.clone(),
        );
        r.register_with_unit(
            "pod_wait",
            "How long the start of a pod waited for its rules",
            seconds.clone(),
            metrics.pod_wait_seconds.clone(),
        );
        r.register_with_unit(
            "policy_change",
            "From the arrival of a change that concerns policy to its commit in the kernel",
            seconds,
            metrics.policy_change_seconds.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// The text of a scrape.
    ///
    /// # Errors
    /// Never in practice: writing to a string fails only when a metric's own encoder does.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_shows_what_was_counted() {
        let metrics = Metrics::default();
        metrics.repairs.inc_by(3);
        metrics.apply_seconds.observe(0.01);
        let text = metrics.encode().unwrap();
        assert!(text.contains("towpath_agent_repairs_total 3\n"), "{text}");
        assert!(text.contains("towpath_agent_apply_seconds_count 1\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
