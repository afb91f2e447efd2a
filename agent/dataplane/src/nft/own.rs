//! Tells our own changes of the ruleset from others'.
//!
//! A notification names the process that committed it, but by its id in the first PID namespace, which the agent cannot see
//! from its container, and by a name that every `nft` has. The generation of the ruleset is reliable: each commit in the
//! network namespace adds one. So we read it before and after our own commit. If somebody else commits in between, one of
//! the generations is ours, and it is not known which; but only changes of our table are looked up, and ours is among
//! them: the first one counts as ours, another one as somebody else's.

use std::collections::VecDeque;

/// A limit that is never reached while notifications are received.
const MAX_PENDING: usize = 256;

/// Our own commits whose notifications are still to come.
#[derive(Debug, Default)]
pub(super) struct OwnChanges {
    pending: VecDeque<GenerationRange>,
}

/// One of the generations after `before`, up to and including `after`, is ours.
#[derive(Debug, Clone, Copy)]
struct GenerationRange {
    before: u32,
    after: u32,
}

impl OwnChanges {
    /// We committed a transaction between two reads of the generation. Equal ones mean that the kernel had nothing to do.
    pub(super) fn applied(&mut self, before: u32, after: u32) {
        if before != after {
            self.pending.push_back(GenerationRange { before, after });
        }
        while self.pending.len() > MAX_PENDING {
            self.pending.pop_front();
        }
    }

    /// Whether a change of our table is ours. To be called once for each change, in order.
    pub(super) fn take(&mut self, generation: u32) -> bool {
        while self.pending.front().is_some_and(|range| is_after(generation, range.after)) {
            self.pending.pop_front();
        }
        let own = self.pending.front().is_some_and(|range| is_after(generation, range.before));
        if own {
            self.pending.pop_front();
        }
        own
    }
}

/// Whether `a` came after `b`: the kernel's counter wraps around.
const fn is_after(a: u32, b: u32) -> bool {
    a != b && a.wrapping_sub(b) < u32::MAX / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(windows: &[(u32, u32)], generations: &[u32]) -> Vec<bool> {
        let mut own = OwnChanges::default();
        windows.iter().for_each(|(before, after)| own.applied(*before, *after));
        generations.iter().map(|generation| own.take(*generation)).collect()
    }

    #[test]
    fn changes_are_attributed_by_their_generation() {
        for (windows, generations, expected, why) in [
            (&[(4, 5)][..], &[5][..], &[true][..], "alone"),
            (&[(4, 5)], &[4, 5, 6], &[false, true, false], "others before and after"),
            (&[(4, 5), (5, 6)], &[5, 6, 7], &[true, true, false], "two in a row"),
            (&[(4, 5), (9, 10)], &[10], &[true], "the first one did not concern our table"),
            (&[(4, 4)], &[5], &[false], "the kernel had nothing to do"),
            (&[(4, 7)], &[6], &[true], "others changed other tables meanwhile"),
            (&[(4, 7)], &[5, 7], &[true, false], "somebody else was in our table: one of them must count"),
            (&[(u32::MAX, 0)], &[u32::MAX, 0], &[false, true], "the counter wrapped around"),
        ] {
            assert_eq!(taken(windows, generations), expected, "{why}");
        }
    }

    #[test]
    fn without_a_listener_it_does_not_grow() {
        let mut own = OwnChanges::default();
        (0..10_000).for_each(|n| own.applied(n, n + 1));
        assert_eq!(own.pending.len(), MAX_PENDING);
        assert!(own.take(10_000), "the last is still known");
    }
}
