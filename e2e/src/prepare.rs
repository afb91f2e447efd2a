//! Builds what clusters need, in parallel where possible.

use anyhow::{Result, anyhow};

use crate::image::{self, Release};
use crate::progress::Progress;
use crate::site::Site;
use crate::toolchain::Tools;

/// Builds the tools and Towpath's image.
///
/// # Errors
/// When a build fails.
pub fn all(site: &Site, progress: &Progress) -> Result<(Tools, Release)> {
    in_parallel(|| Tools::prepare(site, progress), || image::build(site, progress))
}

/// Runs two functions in parallel and waits for both.
///
/// # Errors
/// With the error of `one`, else with that of `other`.
pub fn in_parallel<A, B: Send>(
    one: impl FnOnce() -> Result<A>,
    other: impl FnOnce() -> Result<B> + Send,
) -> Result<(A, B)> {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        let other = other.join().map_err(|_| anyhow!("the second thread panicked"));
        Ok((one?, other??))
    })
}
