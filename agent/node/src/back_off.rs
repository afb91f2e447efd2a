//! The pause after failures in a row.

use std::time::Duration;

use crate::{
    effect::Effect,
    log::{FailedStep, LogLine},
};

/// Bounds of the pause; it doubles with each failure in a row.
const BOUNDS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(crate) struct BackOff {
    failures: u32,
}

impl BackOff {
    /// Counts and logs a failure; returns the pause before the next attempt.
    pub(crate) fn failed(&mut self, step: FailedStep, error: &str, effects: &mut Vec<Effect>) -> Duration {
        let (least, most) = BOUNDS;
        let retry_in = least.saturating_mul(1 << self.failures.min(16)).min(most);
        let first = self.failures == 0;
        effects.push(Effect::Log(LogLine::Failed { step, error: error.to_owned(), retry_in, first }));
        self.failures += 1;
        retry_in
    }

    /// Ends the series of failures.
    pub(crate) const fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_a_bound_and_starts_over_after_a_success() {
        let (mut back_off, mut effects) = (BackOff::default(), Vec::new());
        let mut failed = |back_off: &mut BackOff| {
            back_off.failed(FailedStep::Apply, "requested by the test", &mut effects).as_millis()
        };
        let pauses: Vec<u128> = (0..7).map(|_| failed(&mut back_off)).collect();
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 8000]);
        let long: Vec<u128> = (0..30).map(|_| failed(&mut back_off)).collect();
        assert!(long.iter().all(|pause| *pause == 8000), "however many");
        back_off.succeeded();
        assert_eq!(failed(&mut back_off), 250);
        let is_first = |effect: &Effect| matches!(effect, Effect::Log(LogLine::Failed { first: true, .. }));
        let first: Vec<usize> = (0..effects.len()).filter(|at| is_first(&effects[*at])).collect();
        assert_eq!(first, [0, 37], "the first of each series is a warning");
    }
}
