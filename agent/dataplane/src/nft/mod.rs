//! Our nft table in the kernel: read back, changed in one transaction, watched.

use towpath_core::ruleset::{Installed, Transaction};

mod error;

pub use error::NftError;

/// The table of one network namespace.
pub trait Nft {
    /// What is in the table; `None` when there is no table.
    ///
    /// # Errors
    /// If the kernel or `nft` did not answer, or answered nothing that is understood.
    fn read_back(&mut self) -> Result<Option<Installed>, NftError>;

    /// Does all of the transaction or nothing. An empty one costs nothing.
    ///
    /// # Errors
    /// If the kernel or `nft` refused it. After [`NftError::Timeout`] it is not known whether it was done: read back.
    fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError>;
}
