//! Shared by the kernel tests: throw-away network namespaces, and nodes built from them.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

#[path = "../../../podlink/tests/support/mod.rs"]
mod namespace;
pub(crate) mod nodes;

use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub(crate) use namespace::{Namespace, enter_new_namespace, sh, try_sh};
use towpath_dataplane::nft::KernelNft;

/// Closes a socket that may own the table in the calling thread's namespace, and waits until the kernel has released
/// the table: a child process of another test holds a copy of the socket between fork and exec.
pub(crate) fn close(nft: KernelNft) {
    drop(nft);
    let is_owned = || try_sh("nft list table inet towpath").is_ok_and(|listing| listing.contains("flags owner"));
    let until = Instant::now() + Duration::from_secs(10);
    while is_owned() {
        assert!(Instant::now() < until, "the table is still owned after ten seconds");
    }
}
