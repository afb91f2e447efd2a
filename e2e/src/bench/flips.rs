//! From the write of a NetworkPolicy to its effect on packets, to deny and to allow, with more and more other objects.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use towpath_e2e::api::Api;

use crate::background::{Background, PODS, POLICIES, Part};
use crate::metrics::{CHANGE, Histogram};
use crate::report::Table;
use crate::sample::Sample;
use crate::setup::NAMESPACE;
use crate::stream::{Stream, with_stream};

const PATH: &str = "/apis/networking.k8s.io/v1/namespaces/bench/networkpolicies/flip";
/// Changes in each direction.
const FLIPS: usize = 100;
/// Changes before, so that all that came with a variant has arrived.
const BEFORE: usize = 3;
/// Time between two datagrams.
pub(crate) const PACE: Duration = Duration::from_millis(1);

/// Times of one direction.
#[derive(Default)]
struct Times {
    /// From the beginning of the write.
    begun: Vec<Duration>,
    /// From its return.
    returned: Vec<Duration>,
}

/// Times of both directions.
#[derive(Default)]
pub(crate) struct Flips {
    closed: Times,
    opened: Times,
}

/// Denies and allows again and again, with more and more other objects.
pub(crate) fn measure(background: &mut Background<'_>) -> Result<Table> {
    let mut table = table();
    let steps = [
        ("nothing else".to_owned(), None),
        (format!("{PODS} pods known"), Some(Part::Pods)),
        (format!("and {POLICIES} policies of other pods of the node"), Some(Part::Policies)),
        (format!("and {POLICIES} policies of the same pod"), Some(Part::SamePod)),
    ];
    for (variant, part) in steps {
        part.map_or(Ok(()), |part| background.bring(part))?;
        let before = Histogram::read(&background.node()?, CHANGE)?;
        let flips = with_stream(background.cluster, background.server(), PACE, |stream| {
            let mut flips = Flips::default();
            prepare(&background.api)?;
            for _ in 0..BEFORE {
                Flips::default().once(&background.api, stream)?;
            }
            (0..FLIPS).try_for_each(|_| flips.once(&background.api, stream))?;
            Ok(flips)
        })?;
        background.api.delete(PATH)?;
        let agent = Histogram::read(&background.node()?, CHANGE)?.since(&before);
        flips.rows(&variant, &agent, &mut table)?;
    }
    table.note("A datagram every millisecond across nodes. The agent's figure comes from a histogram of all changes of the variant: the upper bound of the bucket.");
    table.note("Canal, on such a cluster: p50 95 and 79 ms with nothing else, 321 and 320 with 1,000 policies of other pods of the node, 437 and 426 with 1,000 of the same pod.");
    Ok(table)
}

/// An empty table of flips.
pub(crate) fn table() -> Table {
    let header = [
        "variant",
        "change",
        "from the write's return: p50 ms",
        "p99 ms",
        "median (min–max)",
        "from its beginning: p50 ms",
        "p99 ms",
        "agent, event to commit: p50 ms",
        "p99 ms",
        "aim p99",
        "runs",
    ];
    Table::new("Policy, from the API write to its effect", &header)
}

/// Creates the policy that flips, which allows the client.
pub(crate) fn prepare(api: &Api) -> Result<()> {
    api.create(
        "/apis/networking.k8s.io/v1/namespaces/bench/networkpolicies",
        &json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "flip", "namespace": NAMESPACE},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"], "ingress": from("client")},
        }),
    )
}

/// Removes it.
pub(crate) fn remove(api: &Api) -> Result<()> {
    api.delete(PATH)
}

/// Rules that let pods with a label in.
fn from(app: &str) -> Value {
    json!([{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}])
}

impl Times {
    fn add(&mut self, [begun, returned]: [Instant; 2], effect: Instant) {
        self.begun.push(effect.saturating_duration_since(begun));
        self.returned.push(effect.saturating_duration_since(returned));
    }
}

impl Flips {
    /// Denies the stream and allows it again.
    pub(crate) fn once(&mut self, api: &Api, stream: &Stream<'_>) -> Result<()> {
        let deny = write(api, "nobody")?;
        let last = stream.silence(deny[0])?.unwrap_or(deny[0]);
        self.closed.add(deny, last);
        let allow = write(api, "client")?;
        let first = stream.first_after(allow[0])?;
        self.opened.add(allow, first);
        Ok(())
    }

    /// Adds what was measured.
    pub(crate) fn rows(self, variant: &str, agent: &Histogram, table: &mut Table) -> Result<()> {
        for (what, times) in [("allow → deny", self.closed), ("deny → allow", self.opened)] {
            let begun = Sample::of_millis(times.begun).context("no runs")?;
            let returned = Sample::of_millis(times.returned).context("no runs")?;
            table.row([
                variant.to_owned(),
                what.into(),
                format!("{:.1}", returned.median()),
                format!("{:.1}", returned.percentile(99)),
                returned.spread(1),
                format!("{:.1}", begun.median()),
                format!("{:.1}", begun.percentile(99)),
                agent.millis(50),
                agent.millis(99),
                "agent ≤ 10".into(),
                returned.len().to_string(),
            ]);
        }
        Ok(())
    }
}

/// Allows only this app. Returns when the write began and when it returned.
fn write(api: &Api, app: &str) -> Result<[Instant; 2]> {
    let begun = Instant::now();
    api.patch(PATH, &json!({"spec": {"ingress": from(app)}}))?;
    Ok([begun, Instant::now()])
}
