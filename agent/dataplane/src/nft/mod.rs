//! Our nft table in the kernel: read back, changed in transactions, watched for drift.
//!
//! It speaks nf_tables netlink on one socket that stays open: the socket can own the table, and a change costs what it costs
//! the kernel. The `nft` program is not needed; it lists our table as if it had created it.

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
    /// Reads back the table; `None` if it does not exist.
    ///
    /// # Errors
    /// If a dump fails, or another process owns the table.
    fn read_back(&mut self) -> Result<Option<Installed>, NftError>;

    /// Applies a transaction, for packets all of it or nothing: of its [stages](Transaction::stages) the first may be
    /// committed without the second. An empty one costs nothing.
    ///
    /// # Errors
    /// If the kernel rejects it. Read back afterwards: a first stage may have been committed.
    fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError>;

    /// Whether a change from [`NftEvents`] was made by [`Nft::apply`]. To be called once for each change, in order, and
    /// not before an `apply` in progress has returned.
    fn is_own(&mut self, change: &TableChange) -> bool;
}
