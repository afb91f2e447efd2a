//! Our nft table in the kernel: read back, changed in one transaction, watched.
//!
//! Through the `nft` program, with scripts as text: they can be read, repeated by hand and compared, and what nft
//! measured on our tables is the kernel's time, not the program's start (4 ms for one element among twenty thousand).
//! Its listing is asked for in JSON with all numbers numeric.

use towpath_core::ruleset::{Installed, Transaction};

mod command;
mod error;
mod events;
pub mod fake;
mod listing;
mod message;
mod own;

pub use command::NftCommand;
pub use error::NftError;
pub use events::{NftEvents, TableChange};

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

    /// Whether a change that [`NftEvents`] told of was made by [`Nft::apply`]. To be asked once for each change, in
    /// their order, and after the return of an `apply` that was under way.
    fn is_own(&mut self, change: &TableChange) -> bool;
}
