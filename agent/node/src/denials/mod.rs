//! Packets that policies dropped or logged, reported so that a person finds the cause: pod, peer, port and policy.
//!
//! Expected flow: the kernel's packet log → `DenialLog::take`, which asks [`explain`](crate::explain) for the cause →
//! lines of the log, counters, Events on the pod. Everything is bounded: the packets that are explained per second, the
//! kinds that are remembered, the lines and the Events. What exceeds a bound is counted.
//!
//! A denial is logged once, and then once a minute with the number of its packets while they continue. Packets that a
//! policy's Log action logs are reported the same way with bounds of their own, so that neither hides the other. They are
//! no denials: they have no Event and no denial counter.
//!
//! Deliberately absent: the packets themselves, and anything that an attacker could fill by choosing ports or addresses.

mod series;
#[cfg(test)]
mod tests;
mod throttle;
mod token_bucket;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use towpath_core::{
    model::PodId,
    policy::{ir::Direction, packet_log::Reason},
};

pub use self::{series::DenialSeries, throttle::PacketLine};
use self::{series::SeriesIndex, throttle::Throttle, token_bucket::TokenBucket};
use crate::explain::{Denial, DenialCause, LoggedPacket, PacketTuple, PolicyView, explain};

/// How long a kind of packets is remembered after its last one, and the least time between two Events of a pod of the same
/// cause.
const MEMORY: Duration = Duration::from_secs(600);
/// How many kinds and how many Events are remembered.
const MAX_KINDS: usize = 1024;

/// Packets from the kernel's packet log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PacketBatch {
    /// The packets that our rules logged, in their order.
    pub packets: Vec<PacketRecord>,
    /// How many the kernel had no room for.
    pub lost: u32,
}

/// A packet that one of our rules logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PacketRecord {
    /// Whether the rule denies the packet or only logs it.
    pub reason: Reason,
    /// The direction of the policy.
    pub direction: Direction,
    /// Addresses, protocol and port.
    pub tuple: PacketTuple,
}

/// What is to be logged, counted and emitted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DenialReport {
    /// Lines about denied packets.
    pub denied: Vec<PacketLine<Denial>>,
    /// Lines about packets that policy rules log.
    pub logged: Vec<PacketLine<LoggedPacket>>,
    /// Denials to emit an Event about, on the denied pod.
    pub events: Vec<Denial>,
    /// Denied packets by metric series.
    pub counts: BTreeMap<DenialSeries, u64>,
    /// Packets that were not explained: the kernel had no room for them, or they exceeded the rate.
    pub lost: u64,
}

impl DenialReport {
    /// Whether there is nothing to report.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was reported lately, and what is still to be reported.
#[derive(Debug)]
pub(crate) struct DenialLog {
    denied: Throttle<Denial>,
    logged: Throttle<LoggedPacket>,
    /// Times of the last Events.
    events: BTreeMap<(PodId, Direction, DenialCause), Instant>,
    event_rate: TokenBucket,
    series: SeriesIndex,
}

impl DenialLog {
    /// A log that has seen no packet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            denied: Throttle::new(now),
            logged: Throttle::new(now),
            events: BTreeMap::new(),
            event_rate: TokenBucket::new(10, Duration::from_secs(6), now),
            series: SeriesIndex::default(),
        }
    }

    /// Explains packets. Without a view, before the index has synced, they are only counted.
    pub(crate) fn take(&mut self, now: Instant, batch: &PacketBatch, view: Option<PolicyView<'_>>) -> DenialReport {
        let mut report = DenialReport { lost: u64::from(batch.lost), ..DenialReport::default() };
        let mut packets: BTreeMap<PacketRecord, u64> = BTreeMap::new();
        for packet in &batch.packets {
            *packets.entry(*packet).or_default() += 1;
        }
        let Some(view) = view else {
            report.lost += packets.values().sum::<u64>();
            return report;
        };
        for (PacketRecord { reason, direction, tuple }, count) in packets {
            let may_explain = match reason {
                Reason::Denied => self.denied.may_explain(now),
                Reason::Logged => self.logged.may_explain(now),
            };
            if !may_explain {
                report.lost += count;
                continue;
            }
            match reason {
                Reason::Denied => {
                    if let Some(denial) = explain(view, direction, tuple) {
                        self.record_denial(now, denial, count, &mut report);
                    }
                }
                Reason::Logged => {
                    let packet = explain(view, direction, tuple);
                    report.logged.extend(packet.and_then(|packet| self.logged.record(now, packet, count)));
                }
            }
        }
        report
    }

    fn record_denial(&mut self, now: Instant, denial: Denial, packets: u64, report: &mut DenialReport) {
        for series in self.series.of(&denial) {
            *report.counts.entry(series).or_default() += packets;
        }
        if denial.cause.is_policy() && self.take_event(now, &denial) {
            report.events.push(denial.clone());
        }
        report.denied.extend(self.denied.record(now, denial, packets));
    }

    /// Whether an Event is due: the pod had none of the same cause lately, and the rate allows one.
    fn take_event(&mut self, now: Instant, denial: &Denial) -> bool {
        let key = (denial.pod.clone(), denial.direction, denial.cause.clone());
        let lately = self.events.get(&key).is_some_and(|at| now < *at + MEMORY);
        if lately || !self.event_rate.take(now) {
            return false;
        }
        evict_oldest(&mut self.events, |at| *at);
        self.events.insert(key, now);
        true
    }

    /// Reports what continues, if its time has come.
    pub(crate) fn tick(&mut self, now: Instant) -> DenialReport {
        if self.wake_at().is_none_or(|at| now < at) {
            return DenialReport::default();
        }
        self.events.retain(|_, at| now < *at + MEMORY);
        DenialReport { denied: self.denied.tick(now), logged: self.logged.tick(now), ..DenialReport::default() }
    }

    /// When [`DenialLog::tick`] has something to report at the earliest.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.denied.wake_at().into_iter().chain(self.logged.wake_at()).min()
    }
}

/// Removes the oldest entry if the map is full.
fn evict_oldest<K: Ord + Clone, V>(all: &mut BTreeMap<K, V>, age: impl Fn(&V) -> Instant) -> Option<V> {
    if all.len() < MAX_KINDS {
        return None;
    }
    let oldest = all.iter().min_by_key(|(_, value)| age(value)).map(|(key, _)| key.clone())?;
    all.remove(&oldest)
}
