//! Waits for a condition, with a time limit.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two checks of a condition.
const INTERVAL: Duration = Duration::from_millis(100);

/// Checks `condition` until it returns a value.
///
/// # Errors
/// When `bound` has passed (the message names `what`), or with the condition's own error, which ends the wait at once.
pub fn wait_for<T>(what: &str, bound: Duration, mut condition: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("timed out after {} s waiting for: {what}", bound.as_secs());
        }
        std::thread::sleep(INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_ends_with_its_name() {
        let error = wait_for::<()>("the tide turns", Duration::ZERO, || Ok(None)).unwrap_err();
        assert!(error.to_string().contains("the tide turns"));
    }

    #[test]
    fn an_error_of_the_condition_ends_the_wait_before_the_bound() {
        let error = wait_for::<()>("x", Duration::from_secs(3600), || bail!("component died")).unwrap_err();
        assert_eq!(error.to_string(), "component died");
    }
}
