//! Our nft table in the kernel: read back, changed at once, watched.
//!
//! Over netlink, on one socket that is kept: so the kernel lets this socket alone change the table, where it knows how, and
//! a change costs what it costs the kernel. The `nft` program is not needed; what it prints of our table reads as if it
//! had made it.

use towpath_core::ruleset::{Installed, Transaction};

mod batch;
mod decode;
mod error;
mod events;
mod expression;
pub mod fake;
mod foreign;
mod kernel;
mod key;
mod listing;
mod own;
mod read;
mod wire;

pub use error::NftError;
pub use events::{NftEvents, TableChange};
pub use foreign::{ForeignChange, ForeignListener};
pub use kernel::{KernelNft, Ownership};
pub use listing::{ListError, TableFlag, TableListing};

/// The table of one network namespace.
pub trait Nft {
    /// What is in the table; `None` when there is no table.
    ///
    /// # Errors
    /// If the kernel did not answer, or another process owns the table.
    fn read_back(&mut self) -> Result<Option<Installed>, NftError>;

    /// Does all of the transaction or nothing that packets meet: of its [stages](Transaction::stages) the first can be
    /// there without the second. An empty one costs nothing.
    ///
    /// # Errors
    /// If the kernel refused it. After that it is not known what was done: read back.
    fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError>;

    /// Whether a change that [`NftEvents`] told of was made by [`Nft::apply`]. To be asked once for each change, in
    /// their order, and after the return of an `apply` that was under way.
    fn is_own(&mut self, change: &TableChange) -> bool;
}
