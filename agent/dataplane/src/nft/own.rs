//! Which changes of the ruleset were our own transactions.
//!
//! A notification names the process that made the change, but by its number in the first PID namespace, which the agent
//! cannot see from its container, and by a name that every `nft` has. The generation of the ruleset is certain: each
//! commit in the network namespace adds one. So the executor reads it before and after its own transaction. When
//! somebody else commits in between, one of the generations is ours and it is not known which; but only those that
//! touch our table are asked for, and ours is among them: the first one asked for passes as ours, and another one is
//! somebody else's.

use std::collections::VecDeque;

/// More than are ever waiting: notifications are read as fast as they come.
const MAX_WINDOWS: usize = 256;

/// The windows of our own transactions whose notifications have not come yet.
#[derive(Debug, Default)]
pub(super) struct OwnChanges {
    windows: VecDeque<Window>,
}

/// One of the generations behind `before`, up to `after`, is ours.
#[derive(Debug, Clone, Copy)]
struct Window {
    before: u32,
    after: u32,
}

impl OwnChanges {
    /// A transaction of ours was committed between two readings of the generation. Equal ones: the kernel found that
    /// there was nothing to do.
    pub(super) fn applied(&mut self, before: u32, after: u32) {
        if before != after {
            self.windows.push_back(Window { before, after });
        }
        while self.windows.len() > MAX_WINDOWS {
            self.windows.pop_front();
        }
    }

    /// Whether a change of our table passes as ours. Asked once for each, in their order.
    pub(super) fn take(&mut self, generation: u32) -> bool {
        while self.windows.front().is_some_and(|window| is_behind(generation, window.after)) {
            self.windows.pop_front();
        }
        let own = self.windows.front().is_some_and(|window| is_behind(generation, window.before));
        if own {
            self.windows.pop_front();
        }
        own
    }
}

/// Whether `a` came after `b`: the kernel's counter wraps around.
const fn is_behind(a: u32, b: u32) -> bool {
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
    fn what_nobody_disturbed_is_ours_and_nothing_else() {
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
        assert_eq!(own.windows.len(), MAX_WINDOWS);
        assert!(own.take(10_000), "the last is still known");
    }
}
