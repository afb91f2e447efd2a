//! What the kernel tests share: throw-away network namespaces, and nodes made of them.

#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

#[path = "../../../podlink/tests/support/mod.rs"]
mod namespace;
pub(crate) mod nodes;

use std::time::{Duration, Instant};

#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub(crate) use namespace::{Namespace, enter_new_namespace, sh, try_sh};
use towpath_dataplane::nft::KernelNft;

/// Closes a socket that may own our table, in the calling thread's namespace, and waits until it owns it no more: a
/// process that another test is just starting has a copy of the socket until it runs its program.
pub(crate) fn end(nft: KernelNft) {
    drop(nft);
    let is_owned = || try_sh("nft list table inet towpath").is_ok_and(|listing| listing.contains("flags owner"));
    let until = Instant::now() + Duration::from_secs(10);
    while is_owned() {
        assert!(Instant::now() < until, "the socket is open for ten seconds");
    }
}
