//! Making ready what the rest needs, independent things side by side.

use anyhow::{Result, anyhow};

use crate::image::{self, Release};
use crate::progress::Progress;
use crate::site::Site;
use crate::toolchain::Tools;

/// Makes the tools and Towpath's image.
///
/// # Errors
/// When one of them cannot be made.
pub fn all(site: &Site, progress: &Progress) -> Result<(Tools, Release)> {
    side_by_side(|| Tools::prepare(site, progress), || image::build(site, progress))
}

/// Does two things at once and waits for both.
///
/// # Errors
/// With the error of `one`, else with that of `other`.
pub fn side_by_side<A, B: Send>(
    one: impl FnOnce() -> Result<A>,
    other: impl FnOnce() -> Result<B> + Send,
) -> Result<(A, B)> {
    std::thread::scope(|scope| {
        let other = scope.spawn(other);
        let one = one();
        let other = other.join().map_err(|_| anyhow!("the thread of the second thing panicked"));
        Ok((one?, other??))
    })
}
