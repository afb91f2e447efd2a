//! What the agent counts, in the OpenMetrics text format. Bounded in number: the only label that carries an object's name
//! is a policy's, and of those there are at most a hundred.

use std::fmt;

use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::denials::Series;

/// The agent's metrics, all named `towpath_agent_…`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Overlay peers of all families that are wanted.
    pub peers: Gauge,
    /// Pod interfaces on this node.
    pub endpoints: Gauge,
    /// Network policies known.
    pub policies: Gauge,
    /// 1 when the node is ready, else 0.
    pub ready: Gauge,
    /// Entries of ours that somebody else removed or changed, put right.
    pub repairs: Counter,
    /// Connections that were cut because policies deny them now.
    pub connections_cut: Counter,
    /// Changes that the kernel refused; each is tried again.
    pub apply_failures: Counter,
    /// From the start of a change to its commit in the kernel.
    pub apply_seconds: Histogram,
    /// How long the start of a pod waited for its rules.
    pub pod_wait_seconds: Histogram,
    /// From the arrival of the first thing that concerns policy to the commit that puts it in force.
    pub policy_change_seconds: Histogram,
    /// Packets that policies dropped, as far as they were logged.
    pub denied_packets: Family<Series, Counter>,
    /// Logged packets that nobody looked at.
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
            connections_cut: Counter::default(),
            apply_failures: Counter::default(),
            apply_seconds: seconds(),
            pod_wait_seconds: seconds(),
            // Narrow around 10 ms, which is the aim of nearly all of them.
            policy_change_seconds: Histogram::new([
                0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
            ]),
            denied_packets: Family::default(),
            deny_log_lost: Counter::default(),
        };
        let r = &mut metrics.registry;
        r.register("peers", "Overlay peers of all families that are wanted", metrics.peers.clone());
        r.register("endpoints", "Pod interfaces on this node", metrics.endpoints.clone());
        r.register("policies", "Network policies known", metrics.policies.clone());
        r.register("ready", "1 when the node is ready", metrics.ready.clone());
        r.register("repairs", "Entries that somebody else removed or changed, put right", metrics.repairs.clone());
        r.register(
            "connections_cut",
            "Connections that were cut because policies deny them now",
            metrics.connections_cut.clone(),
        );
        r.register(
            "denied_packets",
            "Packets that policies dropped, of those that were logged: at most 10 per second and group of equal pods. A packet counts for the first three policies that isolate its pod; more of them, and policies after the first 96 that dropped any, are other",
            metrics.denied_packets.clone(),
        );
        r.register(
            "deny_log_lost",
            "Logged packets that were more than the kernel could deliver or the agent looks at",
            metrics.deny_log_lost.clone(),
        );
        r.register("apply_failures", "Changes that the kernel refused", metrics.apply_failures.clone());
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
            "From the arrival of what concerns policy to the commit that puts it in force",
            seconds,
            metrics.policy_change_seconds.clone(),
        );
        metrics
    }
}

impl Metrics {
    /// The text that a scrape gets.
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
