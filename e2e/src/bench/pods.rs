//! From the creation of a pod to Running, with Towpath and with the reference network, on two clusters of the same
//! kind.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Deserializer, Value};
use towpath_e2e::api::Api;
use towpath_e2e::cluster::Cluster;

use crate::report::Table;
use crate::sample::Sample;
use crate::setup::{BenchCluster, NAMESPACE, clear, pod};

const COLLECTION: &str = "/api/v1/namespaces/bench/pods";
/// The node that all pods go to.
const NODE: &str = "n1";
/// How many pods at once, and how often.
const BATCHES: [(usize, usize); 2] = [(1, 12), (30, 3)];
/// How often kubelet looks for started containers.
const KUBELET_PERIOD: Duration = Duration::from_secs(1);
/// Time for a batch to run.
const BOUND: Duration = Duration::from_secs(180);

/// One of the two networks with its measurements.
struct NetworkVariant<'a> {
    name: &'static str,
    cluster: &'a Cluster,
    api: Api,
    watch: Watch,
    /// Per batch size and round: the time of each pod.
    times: BTreeMap<usize, Vec<Vec<Duration>>>,
}

/// A running `kubectl get --watch`. It ends when this value is dropped.
struct Watch {
    kubectl: Child,
    running: Receiver<(Instant, String)>,
}

/// Starts the same pods on both, in turn.
pub(crate) fn measure(ours: &BenchCluster, reference: &BenchCluster) -> Result<Table> {
    let mut variants = [NetworkVariant::new("Towpath", ours)?, NetworkVariant::new("bridge + host-local", reference)?];
    // The first pod of a node reads programs and images into the page cache. It is not measured.
    variants.iter_mut().try_for_each(|variant| variant.round(1).map(drop))?;
    for (count, rounds) in BATCHES {
        for round in 0..rounds {
            for variant in &mut variants {
                // The end of a round follows kubelet's period, and so would the next beginning: then every round would
                // wait for the same part of the period. Spread over all of it, the beginnings favour no variant.
                thread::sleep(KUBELET_PERIOD * u32::try_from(round)? / u32::try_from(rounds)?);
                let times = variant.round(count)?;
                variant.times.entry(count).or_default().push(times);
            }
        }
    }
    let header = ["pods at once", "network", "each: p50 s", "p99 s", "all: s (min–max)", "ratio of the medians", "aim"];
    let mut table = Table::new("Pods from create to Running, on one node", &header);
    for (count, _) in BATCHES {
        let all = |variant: &NetworkVariant<'_>| -> Vec<f64> {
            variant.times[&count].iter().flat_map(|round| round.iter().max()).map(Duration::as_secs_f64).collect()
        };
        for (index, variant) in variants.iter().enumerate() {
            let each =
                Sample::new(variant.times[&count].concat().iter().map(Duration::as_secs_f64)).context("no pods")?;
            let spread = Sample::new(all(variant)).context("no rounds")?.spread(2);
            let median = |variant| Sample::new(all(variant)).map(|sample| sample.median()).context("no rounds");
            let ratio = format!("{:.2}", median(&variants[0])? / median(&variants[1])?);
            let (ratio, aim) = if index == 0 { (ratio, "≤ 1") } else { (String::new(), "") };
            let (half, most) = (format!("{:.2}", each.median()), format!("{:.2}", each.percentile(99)));
            table.row([count.to_string(), variant.name.into(), half, most, spread, ratio, aim.into()]);
        }
    }
    table.note(format!(
        "{} rounds of one pod and {} of 30, the two clusters in turn, both up all the time.",
        BATCHES[0].1, BATCHES[1].1
    ));
    table.note(
        "The kubelet looks for started containers once a second: the time of one pod includes half of that on average.",
    );
    Ok(table)
}

impl<'a> NetworkVariant<'a> {
    fn new(name: &'static str, cluster: &'a Cluster) -> Result<Self> {
        Ok(Self { name, cluster, api: Api::open(cluster)?, watch: Watch::start(cluster)?, times: BTreeMap::new() })
    }

    /// Creates that many pods, waits until all run, and removes them.
    fn round(&mut self, count: usize) -> Result<Vec<Duration>> {
        let pods: Vec<Value> = (0..count).map(|index| pod(&format!("p{index}"), NODE)).collect();
        let start = Instant::now();
        self.api.create_all(COLLECTION, &pods)?;
        let mut times = BTreeMap::new();
        while times.len() < count {
            let left = BOUND.saturating_sub(start.elapsed());
            let (at, name) = self.watch.running.recv_timeout(left).with_context(|| {
                format!("{}: {} of {count} pods run after {} s", self.name, times.len(), BOUND.as_secs())
            })?;
            times.entry(name).or_insert(at.saturating_duration_since(start));
        }
        clear(self.cluster)?;
        // Late events of deleted pods must not be taken for events of the next ones.
        while self.watch.running.recv_timeout(Duration::from_millis(200)).is_ok() {}
        Ok(times.into_values().collect())
    }
}

impl Watch {
    fn start(cluster: &Cluster) -> Result<Self> {
        let words = ["get", "pods", "-n", NAMESPACE, "-o", "json", "--watch", "--output-watch-events"];
        let mut command = cluster.kubectl_command(&words);
        let mut kubectl = command.stdout(Stdio::piped()).spawn().context("start kubectl get --watch")?;
        let said = kubectl.stdout.take().context("kubectl has no output")?;
        let (to, running) = channel();
        thread::spawn(move || {
            // It ends with kubectl, whose last event may be incomplete.
            for event in Deserializer::from_reader(said).into_iter::<Value>().map_while(Result::ok) {
                let pod = &event["object"];
                if pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null() {
                    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                    if to.send((Instant::now(), name)).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self { kubectl, running })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}
