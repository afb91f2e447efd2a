//! When to tell of what: of equal packets once, and then once a minute with their number while they go on.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{MEMORY, budget::Budget, make_room};

/// How long what goes on is silent between two lines.
pub(super) const PERIOD: Duration = Duration::from_secs(60);

/// A line of the log. Packets are counted as often as the kernel told of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line<T> {
    /// The first packets of a kind.
    First(T, u64),
    /// So many more since it was told of last.
    Again(T, u64),
    /// So many packets of other kinds, which there was no room to tell of one by one.
    Others(u64),
}

/// What has been told, and what is still to be told.
#[derive(Debug)]
pub(super) struct Telling<T> {
    known: BTreeMap<T, Entry>,
    looks: Budget,
    lines: Budget,
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

impl<T: Ord + Clone> Telling<T> {
    /// Nothing has happened yet.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            known: BTreeMap::new(),
            // A look asks the evaluator, which walks over all policies.
            looks: Budget::new(100, Duration::from_millis(20), now),
            lines: Budget::new(100, Duration::from_millis(200), now),
            others: 0,
            next: None,
        }
    }

    /// Whether there is time to find out what a packet is.
    pub(super) fn may_look(&mut self, now: Instant) -> bool {
        self.looks.take(now)
    }

    /// Takes in so many packets of a kind.
    pub(super) fn saw(&mut self, now: Instant, kind: T, packets: u64) -> Option<Line<T>> {
        self.next.get_or_insert(now + PERIOD);
        if let Some(entry) = self.known.get_mut(&kind) {
            entry.seen = now;
            entry.untold += packets;
            return None;
        }
        make_room(&mut self.known, |entry| entry.seen).inspect(|entry| self.others += entry.untold);
        self.known.insert(kind.clone(), Entry { seen: now, untold: 0 });
        if self.lines.take(now) {
            return Some(Line::First(kind, packets));
        }
        self.others += packets;
        None
    }

    /// Tells of what goes on, if it is time to.
    pub(super) fn tick(&mut self, now: Instant) -> Vec<Line<T>> {
        let mut lines = Vec::new();
        if self.next.is_none_or(|next| now < next) {
            return lines;
        }
        for (kind, entry) in &mut self.known {
            let untold = std::mem::take(&mut entry.untold);
            if untold > 0 && self.lines.take(now) {
                lines.push(Line::Again(kind.clone(), untold));
            } else {
                self.others += untold;
            }
        }
        if self.others > 0 {
            lines.push(Line::Others(std::mem::take(&mut self.others)));
        }
        self.known.retain(|_, entry| now < entry.seen + MEMORY);
        self.next = (!self.known.is_empty()).then_some(now + PERIOD);
        lines
    }

    /// When to call [`Telling::tick`].
    pub(super) const fn wake_at(&self) -> Option<Instant> {
        self.next
    }

    /// How many kinds are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denials::MOST;

    #[test]
    fn without_room_the_one_that_was_seen_longest_ago_goes_and_what_was_not_told_of_it_is_not_lost() {
        let start = Instant::now();
        let mut telling = Telling::new(start);
        for kind in 0..MOST {
            telling.saw(start, kind, 1);
        }
        let second = Duration::from_secs(1);
        for kind in 1..MOST {
            telling.saw(start + second, kind, 1);
        }
        telling.saw(start + 2 * second, 0, 10);
        telling.saw(start + 3 * second, MOST, 100);
        let told = telling.tick(start + PERIOD);
        assert!(told.contains(&Line::Again(0, 10)), "it was seen last: {told:?}");
        let packets: u64 = told
            .iter()
            .map(|line| match line {
                Line::First(_, packets) | Line::Again(_, packets) | Line::Others(packets) => *packets,
            })
            .sum();
        // The first hundred had a line each; the hundredth second has brought ten lines more.
        assert_eq!(packets, (MOST as u64 - 100) + (MOST as u64 - 1) + 10);
        assert_eq!(telling.remembered(), MOST);
    }
}
