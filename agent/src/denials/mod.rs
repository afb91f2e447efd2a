//! What policies dropped, told so that a person finds the cause: which pod, which peer, which port, and which policy.
//!
//! Expected flow: the kernel's packet log → [`Denials::take`], which asks the evaluator why → lines for the log, counts
//! for the metrics, notes for Events on the pod. All of it is bounded: the packets that are looked at per second, the
//! denials that are remembered, the lines and the Events that are written. What is above a bound is counted.
//!
//! A denial is told of once, and then once a minute with the number of its packets while they go on. The evaluator
//! decides by what is known *now*: a packet that it would let through is not blamed on any policy.
//!
//! What a rule of a policy logs comes the same way and has lines of its own, with bounds of their own: neither hides the
//! other. It is no denial, so it has no Event and is not counted as one.
//!
//! Deliberately absent: the packets themselves, and anything that an attacker could fill by choosing ports or addresses.

mod budget;
mod cause;
mod metric;
mod telling;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::OrdMap;
use towpath_core::{
    model::{Endpoint, PodId},
    names::IfName,
    policy::{
        compile::Compiler,
        ir::{Direction, Snapshot},
        packet_log::{Reason, read_prefix},
    },
};
use towpath_dataplane::nflog::{Batch, Head};

use self::{budget::Budget, metric::AllSeries, telling::Telling};
pub use self::{
    cause::{Cause, Denial, LoggedBy, Peer, Sighting, Told},
    metric::Series,
    telling::Line,
};

/// How long a kind of packets is remembered after its last one, and how long a pod has no second Event of the same cause.
const MEMORY: Duration = Duration::from_secs(600);
/// How many kinds and how many Events are remembered.
const MOST: usize = 1024;

/// What is to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Lines for the log about what was dropped.
    pub lines: Vec<Line<Denial>>,
    /// Lines for the log about what rules log.
    pub logged: Vec<Line<Sighting>>,
    /// Denials to write an Event of, on the denied pod.
    pub events: Vec<Denial>,
    /// Packets to count.
    pub counts: BTreeMap<Series, u64>,
    /// Packets that nobody looked at: the kernel had no room for them, or they were too many.
    pub lost: u64,
}

impl Findings {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What the cluster looks like to whoever asks why.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The pods of this node.
    pub endpoints: &'a OrdMap<IfName, Arc<Endpoint>>,
    /// Policies and pods.
    pub snapshot: &'a Snapshot,
    /// What has made the rules: it finds pods by their addresses.
    pub compiler: &'a Compiler,
}

/// What has been told, and what is still to be told.
#[derive(Debug)]
pub struct Denials {
    denied: Telling<Denial>,
    logged: Telling<Sighting>,
    /// When the pods had their last Events.
    events: BTreeMap<(PodId, Direction, Cause), Instant>,
    series: AllSeries,
    notes: Budget,
}

impl Denials {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            denied: Telling::new(now),
            logged: Telling::new(now),
            events: BTreeMap::new(),
            series: AllSeries::default(),
            notes: Budget::new(10, Duration::from_secs(6), now),
        }
    }

    /// Takes in what the kernel told of. Without a view, before the cluster is known, nothing can be said of it.
    pub fn take(&mut self, now: Instant, batch: &Batch, view: Option<View<'_>>) -> Findings {
        let mut found = Findings { lost: u64::from(batch.lost), ..Findings::default() };
        let mut packets: BTreeMap<(Reason, Direction, Head), u64> = BTreeMap::new();
        for packet in &batch.packets {
            if let Some((reason, direction)) = read_prefix(&packet.prefix) {
                *packets.entry((reason, direction, packet.head)).or_default() += 1;
            }
        }
        let Some(view) = view else {
            found.lost += packets.values().sum::<u64>();
            return found;
        };
        for ((reason, direction, head), count) in packets {
            let looks = match reason {
                Reason::Denied => self.denied.may_look(now),
                Reason::Logged => self.logged.may_look(now),
            };
            match reason {
                _ if !looks => found.lost += count,
                Reason::Denied => {
                    if let Some(denial) = cause::find(view, direction, head) {
                        self.denied(now, denial, count, &mut found);
                    }
                }
                Reason::Logged => {
                    let sighting = cause::find(view, direction, head);
                    found.logged.extend(sighting.and_then(|sighting| self.logged.saw(now, sighting, count)));
                }
            }
        }
        found
    }

    fn denied(&mut self, now: Instant, denial: Denial, packets: u64, found: &mut Findings) {
        for series in self.series.of(&denial) {
            *found.counts.entry(series).or_default() += packets;
        }
        if denial.cause.is_policy() && self.is_new_to_the_pod(now, &denial) {
            found.events.push(denial.clone());
        }
        found.lines.extend(self.denied.saw(now, denial, packets));
    }

    /// Whether the pod has had no Event of it lately, and is to have one.
    fn is_new_to_the_pod(&mut self, now: Instant, denial: &Denial) -> bool {
        let key = (denial.pod.clone(), denial.direction, denial.cause.clone());
        let lately = self.events.get(&key).is_some_and(|at| now < *at + MEMORY);
        if lately || !self.notes.take(now) {
            return false;
        }
        make_room(&mut self.events, |at| *at);
        self.events.insert(key, now);
        true
    }

    /// Tells of what goes on, if it is time to.
    pub fn tick(&mut self, now: Instant) -> Findings {
        if self.wake_at().is_none_or(|at| now < at) {
            return Findings::default();
        }
        self.events.retain(|_, at| now < *at + MEMORY);
        Findings { lines: self.denied.tick(now), logged: self.logged.tick(now), ..Findings::default() }
    }

    /// When to call [`Denials::tick`].
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.denied.wake_at().into_iter().chain(self.logged.wake_at()).min()
    }
}

/// Removes the oldest one if there is no room for another.
fn make_room<K: Ord + Clone, V>(all: &mut BTreeMap<K, V>, age: impl Fn(&V) -> Instant) -> Option<V> {
    if all.len() < MOST {
        return None;
    }
    let oldest = all.iter().min_by_key(|(_, value)| age(value)).map(|(key, _)| key.clone())?;
    all.remove(&oldest)
}
