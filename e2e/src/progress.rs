//! Lines that tell a waiting person what happens, with the seconds since the start.

use std::time::{Duration, Instant};

/// Prints steps with their time. Cheap to copy; the clock is shared by all copies.
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
    /// Tells one step on standard error, so that standard output stays free for results.
    pub fn step(&self, line: impl AsRef<str>) {
        eprintln!("[{:>6.1} s] {}", self.start.elapsed().as_secs_f64(), line.as_ref());
    }

    /// Time since the start.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
