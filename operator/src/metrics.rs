//! The operator's metrics, all named `towpath_operator_…`.

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

/// Label `kind`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct KindLabel {
    /// Kind of the object.
    pub kind: &'static str,
}

/// Labels of a write.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct WriteLabels {
    /// Kind of the object.
    pub kind: &'static str,
    /// What was done: apply, strip, delete, status, finalizer, event.
    pub step: &'static str,
}

/// Label `result`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabel {
    /// `ok`, or the category of the failure.
    pub result: &'static str,
}

/// Label `state`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabel {
    /// ready, degraded, unreachable, pending.
    pub state: &'static str,
}

/// Every metric. Cheap to clone: all clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Plans carried out.
    pub reconciles: Family<ResultLabel, Counter>,
    /// How long plan and writes took, in seconds.
    pub reconcile_seconds: Histogram,
    /// Requests that change something.
    pub writes: Family<WriteLabels, Counter>,
    /// Failed watches.
    pub watch_failures: Family<KindLabel, Counter>,
    /// Objects that could not be read and were left out.
    pub unreadable: Family<KindLabel, Counter>,
    /// Nodes by state, as last published by this replica.
    pub nodes: Family<StateLabel, Gauge>,
    /// 1 while the NetworkConfig is ready, as last published by this replica.
    pub ready: Gauge,
    /// 1 while this replica holds the lease.
    pub leader: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reconciles: Family::default(),
            reconcile_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            writes: Family::default(),
            watch_failures: Family::default(),
            unreadable: Family::default(),
            nodes: Family::default(),
            ready: Gauge::default(),
            leader: Gauge::default(),
        }
    }
}

impl Metrics {
    /// A registry of all of them.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("towpath_operator");
        registry.register("reconciles", "Plans carried out, by result", self.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "How long a plan and its writes took",
            Unit::Seconds,
            self.reconcile_seconds.clone(),
        );
        registry.register("writes", "Requests that change something", self.writes.clone());
        registry.register("watch_failures", "Failed watches", self.watch_failures.clone());
        registry.register(
            "unreadable_objects",
            "Objects that could not be read and were left out",
            self.unreadable.clone(),
        );
        registry.register("nodes", "Nodes by state, as last published by this replica", self.nodes.clone());
        registry.register(
            "network_ready",
            "1 while the NetworkConfig is ready, as last published by this replica",
            self.ready.clone(),
        );
        registry.register("leader", "1 while this replica holds the lease", self.leader.clone());
        registry
    }
}

/// The registry as a scrape reads it (OpenMetrics text).
///
/// # Errors
/// When the text cannot be written, which memory alone could cause.
pub fn render(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    text::encode(&mut text, registry)?;
    Ok(text)
}
