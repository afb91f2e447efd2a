//! What policies dropped, told so that a person finds the cause: which pod, which peer, which port, and which policy.
//!
//! Expected flow: the kernel's packet log → [`Denials::take`], which asks the evaluator why → lines for the log, counts
//! for the metrics, notes for Events on the pod. All of it is bounded: the packets that are looked at per second, the
//! denials that are remembered, the lines and the Events that are written. What is above a bound is counted.
//!
//! A denial is told of once, and then once a minute with the number of its packets while they go on. The evaluator
//! decides by what is known *now*: a packet that it would let through is not blamed on any policy.
//!
//! Deliberately absent: the packets themselves, and anything that an attacker could fill by choosing ports or addresses.

mod budget;
mod cause;
mod metric;
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
        deny_log,
        ir::{Direction, Snapshot},
    },
};
use towpath_dataplane::nflog::{Batch, Head};

use self::{budget::Budget, cause::Holders, metric::AllSeries};
pub use self::{
    cause::{Cause, Denial, Peer},
    metric::Series,
};

/// How long a denial that goes on is silent between two lines.
const PERIOD: Duration = Duration::from_secs(60);
/// How long a denial is remembered after its last packet, and how long a pod has no second Event of the same cause.
const MEMORY: Duration = Duration::from_secs(600);
/// How many denials and how many Events are remembered.
const MOST: usize = 1024;

/// What is to be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Lines for the log.
    pub lines: Vec<Line>,
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

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The first packets of a denial.
    First(Denial, u64),
    /// So many more since it was told of last.
    Again(Denial, u64),
    /// So many packets of other denials, which there was no room to tell of one by one.
    Others(u64),
}

/// What the cluster looks like to whoever asks why.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The pods of this node.
    pub endpoints: &'a OrdMap<IfName, Arc<Endpoint>>,
    /// Policies and pods.
    pub snapshot: &'a Snapshot,
}

/// What has been told, and what is still to be told.
#[derive(Debug)]
pub struct Denials {
    known: BTreeMap<Denial, Entry>,
    /// When the pods had their last Events.
    events: BTreeMap<(PodId, Direction, Cause), Instant>,
    series: AllSeries,
    looks: Budget,
    lines: Budget,
    notes: Budget,
    /// Packets that had no line of their own.
    others: u64,
    /// When to tell of what goes on; `None`: nothing does.
    next: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    /// When its last packet was seen.
    seen: Instant,
    /// Packets since it was told of last.
    untold: u64,
}

impl Denials {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            known: BTreeMap::new(),
            events: BTreeMap::new(),
            series: AllSeries::default(),
            // A look asks the evaluator, all looks of a batch cost one walk over all pods together.
            looks: Budget::new(100, Duration::from_millis(20), now),
            lines: Budget::new(100, Duration::from_millis(200), now),
            notes: Budget::new(10, Duration::from_secs(6), now),
            others: 0,
            next: None,
        }
    }

    /// Takes in what the kernel told of. Without a view, before the cluster is known, nothing can be said of it.
    pub fn take(&mut self, now: Instant, batch: &Batch, view: Option<View<'_>>) -> Findings {
        let mut found = Findings { lost: u64::from(batch.lost), ..Findings::default() };
        let mut packets: BTreeMap<(Direction, Head), u64> = BTreeMap::new();
        for packet in &batch.packets {
            if let Some(direction) = deny_log::direction(&packet.prefix) {
                *packets.entry((direction, packet.head)).or_default() += 1;
            }
        }
        let Some(view) = view else {
            found.lost += packets.values().sum::<u64>();
            return found;
        };
        let mut looked_at = Vec::new();
        for (packet, count) in packets {
            if self.looks.take(now) {
                looked_at.push((packet, count));
            } else {
                found.lost += count;
            }
        }
        if looked_at.is_empty() {
            return found;
        }
        let ends = looked_at.iter().flat_map(|((_, head), _)| [head.source, head.destination]);
        let holders = Holders::find(view.snapshot, ends);
        for ((direction, head), count) in looked_at {
            if let Some(denial) = cause::find(view, &holders, direction, head) {
                self.denied(now, denial, count, &mut found);
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
        if let Some(entry) = self.known.get_mut(&denial) {
            entry.seen = now;
            entry.untold += packets;
        } else {
            make_room(&mut self.known, |entry| entry.seen).inspect(|entry| self.others += entry.untold);
            self.known.insert(denial.clone(), Entry { seen: now, untold: 0 });
            if self.lines.take(now) {
                found.lines.push(Line::First(denial, packets));
            } else {
                self.others += packets;
            }
        }
        self.next.get_or_insert(now + PERIOD);
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
        let mut found = Findings::default();
        if self.next.is_none_or(|next| now < next) {
            return found;
        }
        for (denial, entry) in &mut self.known {
            let untold = std::mem::take(&mut entry.untold);
            if untold > 0 && self.lines.take(now) {
                found.lines.push(Line::Again(denial.clone(), untold));
            } else {
                self.others += untold;
            }
        }
        if self.others > 0 {
            found.lines.push(Line::Others(std::mem::take(&mut self.others)));
        }
        self.known.retain(|_, entry| now < entry.seen + MEMORY);
        self.events.retain(|_, at| now < *at + MEMORY);
        self.next = (!self.known.is_empty()).then_some(now + PERIOD);
        found
    }

    /// When to call [`Denials::tick`].
    #[must_use]
    pub const fn wake_at(&self) -> Option<Instant> {
        self.next
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
