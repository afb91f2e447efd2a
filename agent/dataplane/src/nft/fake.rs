//! A table that executes transactions without a kernel, for the agent's tests.

use nix::errno::Errno;
use towpath_core::ruleset::{Installed, Transaction, fake::FakeTable};

use super::{Nft, NftError, TableChange};
use crate::nfnetlink::NetlinkError;

/// An executor over a [`FakeTable`], whose faults are made to order.
#[derive(Debug, Clone, Default)]
pub struct FakeNft {
    /// The table, open to whoever wants to tamper with it.
    pub table: FakeTable,
    /// How many of the next applies are refused.
    pub refuse: usize,
    /// The transactions that were done, in their order.
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
        if let Some(left) = self.refuse.checked_sub(1) {
            self.refuse = left;
            return Err(refused("by order of the test".to_owned()));
        }
        self.table.apply(transaction).map_err(|refusal| refused(refusal.to_string()))?;
        self.applied.push(transaction.clone());
        Ok(())
    }

    /// It makes no notifications, so those that a test makes are never its own.
    fn is_own(&mut self, _change: &TableChange) -> bool {
        false
    }
}

fn refused(why: String) -> NftError {
    let source = NetlinkError::Rejected { message: Some(why), source: Errno::EINVAL.into() };
    NftError::Refused { step: "a transaction".to_owned(), source }
}
