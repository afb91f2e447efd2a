//! Throttled log lines: equal packets are logged once, and then once a minute with their number while they continue.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{MEMORY, evict_oldest, token_bucket::TokenBucket};

/// Time between two lines about packets of one kind that continue.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// A line of the log, with the number of logged packets that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PacketLine<T> {
    /// The first packets of a kind.
    First(T, u64),
    /// More packets of a kind since its last line.
    Continued(T, u64),
    /// Packets of kinds that were not logged one by one, because the log's rate was exhausted.
    Suppressed(u64),
}

/// The kinds of packets that were logged lately, and what is still to be logged.
#[derive(Debug)]
pub(super) struct Throttle<T> {
    known: BTreeMap<T, Kind>,
    lookups: TokenBucket,
    lines: TokenBucket,
    /// Packets that have no line of their own.
    suppressed: u64,
    /// Time of the next lines about what continues; `None` if nothing does.
    next: Option<Instant>,
}

#[derive(Debug)]
struct Kind {
    /// Time of its last packet.
    last_seen: Instant,
    /// Packets since its last line.
    unlogged: u64,
}

impl<T: Ord + Clone> Throttle<T> {
    /// A throttle that has seen no packet.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            known: BTreeMap::new(),
            // A lookup runs the evaluator, which walks over all policies.
            lookups: TokenBucket::new(100, Duration::from_millis(20), now),
            lines: TokenBucket::new(100, Duration::from_millis(200), now),
            suppressed: 0,
            next: None,
        }
    }

    /// Whether another packet may be explained now.
    pub(super) fn may_explain(&mut self, now: Instant) -> bool {
        self.lookups.take(now)
    }

    /// Counts packets of a kind; returns a line if they are the first.
    pub(super) fn record(&mut self, now: Instant, kind: T, packets: u64) -> Option<PacketLine<T>> {
        self.next.get_or_insert(now + PERIOD);
        if let Some(entry) = self.known.get_mut(&kind) {
            entry.last_seen = now;
            entry.unlogged += packets;
            return None;
        }
        evict_oldest(&mut self.known, |entry| entry.last_seen).inspect(|entry| self.suppressed += entry.unlogged);
        self.known.insert(kind.clone(), Kind { last_seen: now, unlogged: 0 });
        if self.lines.take(now) {
            return Some(PacketLine::First(kind, packets));
        }
        self.suppressed += packets;
        None
    }

    /// Returns the lines about what continues, if their time has come.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<PacketLine<T>> {
        let mut lines = Vec::new();
        if self.next.is_none_or(|next| now < next) {
            return lines;
        }
        for (kind, entry) in &mut self.known {
            let unlogged = std::mem::take(&mut entry.unlogged);
            if unlogged > 0 && self.lines.take(now) {
                lines.push(PacketLine::Continued(kind.clone(), unlogged));
            } else {
                self.suppressed += unlogged;
            }
        }
        if self.suppressed > 0 {
            lines.push(PacketLine::Suppressed(std::mem::take(&mut self.suppressed)));
        }
        self.known.retain(|_, entry| now < entry.last_seen + MEMORY);
        self.next = (!self.known.is_empty()).then_some(now + PERIOD);
        lines
    }

    /// When [`Throttle::tick`] has lines at the earliest.
    pub(super) const fn wake_at(&self) -> Option<Instant> {
        self.next
    }

    /// The number of kinds that are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denials::MAX_KINDS;

    #[test]
    fn the_kind_that_was_seen_longest_ago_is_evicted_and_its_packets_stay_counted() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        for kind in 0..MAX_KINDS {
            throttle.record(start, kind, 1);
        }
        let second = Duration::from_secs(1);
        for kind in 1..MAX_KINDS {
            throttle.record(start + second, kind, 1);
        }
        throttle.record(start + 2 * second, 0, 10);
        throttle.record(start + 3 * second, MAX_KINDS, 100);
        let lines = throttle.tick(start + PERIOD);
        assert!(lines.contains(&PacketLine::Continued(0, 10)), "it was seen last: {lines:?}");
        let packets: u64 = lines
            .iter()
            .map(|line| match line {
                PacketLine::First(_, packets) | PacketLine::Continued(_, packets) | PacketLine::Suppressed(packets) => {
                    *packets
                }
            })
            .sum();
        // The first hundred had a line each; the hundredth second has brought ten lines more.
        assert_eq!(packets, (MAX_KINDS as u64 - 100) + (MAX_KINDS as u64 - 1) + 10);
        assert_eq!(throttle.remembered(), MAX_KINDS);
    }
}
