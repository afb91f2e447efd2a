//! Progress messages on standard error, with the seconds since the start.

use std::time::{Duration, Instant};

/// Prints progress messages. Copies share the clock.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    start: Instant,
}

impl Default for Progress {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Progress {
    /// Prints a message on standard error: standard output is for results.
    pub fn step(&self, line: impl AsRef<str>) {
        eprintln!("[{:>6.1} s] {}", self.start.elapsed().as_secs_f64(), line.as_ref());
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
