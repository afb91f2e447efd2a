//! A token bucket.

use std::time::{Duration, Instant};

/// A token bucket: a burst at once, and a rate in the long run.
#[derive(Debug)]
pub(super) struct TokenBucket {
    burst: u32,
    every: Duration,
    left: u32,
    /// The time up to which tokens have been added.
    filled: Instant,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens, to which one is added `every` so often; not zero.
    pub(super) const fn new(burst: u32, every: Duration, now: Instant) -> Self {
        Self { burst, every, left: burst, filled: now }
    }

    /// Takes a token; false if none is left.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.filled).as_nanos() / self.every.as_nanos();
        let missing = u128::from(self.burst - self.left);
        if grown >= missing {
            (self.left, self.filled) = (self.burst, now);
        } else {
            // Fewer than are missing, which is a number of 32 bits.
            let grown = u32::try_from(grown).unwrap_or(self.burst - self.left);
            self.left += grown;
            self.filled += self.every * grown;
        }
        let is_left = self.left > 0;
        self.left -= u32::from(is_left);
        is_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_is_spent_at_once_and_comes_back_with_time() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(3, Duration::from_secs(10), start);
        for (seconds, is_left, why) in [
            (0, true, "one"),
            (0, true, "two"),
            (0, true, "three at once"),
            (0, false, "spent"),
            (9, false, "not yet"),
            (10, true, "one has come back"),
            (19, false, "part of a turn"),
            (20, true, "which was not lost"),
            (1000, true, "one"),
            (1000, true, "two"),
            (1000, true, "never more than three"),
            (1000, false, "spent again"),
        ] {
            assert_eq!(bucket.take(start + Duration::from_secs(seconds)), is_left, "{why}");
        }
    }
}
