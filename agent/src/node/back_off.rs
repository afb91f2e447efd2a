//! How long to wait after failures in a row, and how loudly to say so.

use std::{error::Error, time::Duration};

use tracing::{debug, warn};

/// Bounds of the pause after a failure; it doubles with each in a row.
const BOUNDS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    failures: u32,
}

impl BackOff {
    /// Counts a failure, says what was not done (the first as a warning), and returns how long to wait.
    pub(super) fn failed(&mut self, not_done: &'static str, error: &(dyn Error + 'static)) -> Duration {
        let (least, most) = BOUNDS;
        let pause = least.saturating_mul(1 << self.failures.min(16)).min(most);
        if self.failures == 0 {
            warn!(error, retry_ms = pause.as_millis(), "{not_done}; tried again");
        } else {
            debug!(error, retry_ms = pause.as_millis(), "{not_done}; tried again");
        }
        self.failures += 1;
        pause
    }

    /// It has succeeded.
    pub(super) const fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_bound_and_begins_anew_after_a_success() {
        let mut back_off = BackOff::default();
        let error = std::io::Error::other("by order of the test");
        let pauses: Vec<u128> = (0..7).map(|_| back_off.failed("nothing done", &error).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 8000]);
        let long: Vec<u128> = (0..30).map(|_| back_off.failed("nothing done", &error).as_millis()).collect();
        assert!(long.iter().all(|pause| *pause == 8000), "however many");
        back_off.succeeded();
        assert_eq!(back_off.failed("nothing done", &error).as_millis(), 250);
    }
}
