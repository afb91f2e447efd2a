//! A table in memory that executes transactions, for tests.

use nix::errno::Errno;
use towpath_core::ruleset::{Installed, Transaction, fake::FakeTable};

use super::{Nft, NftError, TableChange};
use crate::nfnetlink::NetlinkError;

/// An executing fake of [`Nft`] over a [`FakeTable`], with rejections on demand.
#[derive(Debug, Clone, Default)]
pub struct FakeNft {
    /// The table. A test may change it, as another program would.
    pub table: FakeTable,
    /// How many of the next transactions are rejected.
    pub reject: usize,
    /// The transactions that were committed, in order.
    pub applied: Vec<Transaction>,
}

impl Nft for FakeNft {
    fn read_back(&mut self) -> Result<Option<Installed>, NftError> {
        Ok(self.table.read_back())
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        if transaction.is_empty() {
            return Ok(());
        }
        if let Some(left) = self.reject.checked_sub(1) {
            self.reject = left;
            return Err(rejected("by the test".to_owned()));
        }
        self.table.apply(transaction).map_err(|refusal| rejected(refusal.to_string()))?;
        self.applied.push(transaction.clone());
        Ok(())
    }

    /// There are no notifications of its own.
    fn is_own(&mut self, _change: &TableChange) -> bool {
        false
    }
}

fn rejected(why: String) -> NftError {
    let source = NetlinkError::Rejected { message: Some(why), source: Errno::EINVAL.into() };
    NftError::Rejected { step: "a transaction".to_owned(), source }
}
