//! Waiting on a condition with a bound. The only place that sleeps: between two looks at the condition.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(100);

/// Looks at `condition` until it gives a value.
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
            bail!("{what}: not within {} s", bound.as_secs());
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
