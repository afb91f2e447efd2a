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
    /// The write: apply, strip (removal of unmanaged fields), delete, status, finalizer, event.
    pub step: &'static str,
}

/// Label `result`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ResultLabel {
    /// `ok`, `timeout`, or the write that failed.
    pub result: &'static str,
}

/// Label `state`.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StateLabel {
    /// ready, degraded, unreachable or pending.
    pub state: &'static str,
}

/// Every metric. Clones share their values.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Reconciles that wrote something, by result.
    pub reconciles: Family<ResultLabel, Counter>,
    /// Duration of a reconcile, in seconds.
    pub reconcile_seconds: Histogram,
    /// Write requests to the API server.
    pub writes: Family<WriteLabels, Counter>,
    /// Failed list and watch requests.
    pub watch_failures: Family<KindLabel, Counter>,
    /// Watch events with an object that cannot be decoded.
    pub unreadable: Family<KindLabel, Counter>,
    /// Nodes by state, as this replica last published them.
    pub nodes: Family<StateLabel, Gauge>,
    /// 1 while the NetworkConfig is Ready, as this replica last published it.
    pub ready: Gauge,
    /// 1 while this replica holds the Lease.
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
    /// A registry with every metric.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("towpath_operator");
        registry.register("reconciles", "Reconciles that wrote something, by result", self.reconciles.clone());
        registry.register_with_unit(
            "reconcile_duration",
            "Duration of a reconcile: the plan and its writes",
            Unit::Seconds,
            self.reconcile_seconds.clone(),
        );
        registry.register("writes", "Write requests to the API server, by kind and step", self.writes.clone());
        registry.register("watch_failures", "Failed list and watch requests, by kind", self.watch_failures.clone());
        registry.register(
            "unreadable_objects",
            "Watch events with an object that cannot be decoded, by kind",
            self.unreadable.clone(),
        );
        registry.register("nodes", "Nodes by state, as this replica last published them", self.nodes.clone());
        registry.register(
            "network_ready",
            "1 while the NetworkConfig is Ready, as this replica last published it",
            self.ready.clone(),
        );
        registry.register("leader", "1 while this replica holds the Lease", self.leader.clone());
        registry
    }
}

/// The registry in the OpenMetrics text format.
///
/// # Errors
/// If the text cannot be encoded.
pub fn render(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    text::encode(&mut text, registry)?;
    Ok(text)
}
