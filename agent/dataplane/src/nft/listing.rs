//! Our whole table, rules included, as the kernel has it: what `towpath-agent ruleset` prints.
//!
//! For comparing, [`super::Nft::read_back`] is enough and cheaper: it reads of a rule only its fingerprint.

use std::sync::Arc;

use towpath_core::{
    names::{ChainName, SetName},
    ruleset::{Chain, Rule, Ruleset, Unmanaged},
};

use super::{
    KernelNft, NftError,
    kernel::ATTEMPTS,
    read::{self, Table},
    wire::{NftMessage, table},
};

/// A flag of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableFlag {
    /// Only the socket that made it changes it.
    Owner,
    /// It outlives its owner.
    Persist,
}

/// Our table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableListing {
    /// The table's flags, in order.
    pub flags: Vec<TableFlag>,
    /// What is in it.
    pub ruleset: Ruleset,
}

/// Our table cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// The kernel did not answer.
    #[error("read our table")]
    Read(#[from] NftError),
    /// Something in it was not written by this version of the agent.
    #[error(
        "the table holds {what}, which this version of the agent did not write; `nft list table inet towpath` shows it"
    )]
    Unmanaged {
        /// What.
        what: String,
    },
}

impl KernelNft {
    /// Our table with its rules; `None` when there is no table. Reads only: the table may belong to another process.
    ///
    /// # Errors
    /// If the kernel did not answer, the table changed during each attempt, or something in it is not ours.
    pub fn list(&mut self) -> Result<Option<TableListing>, ListError> {
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let Some(table) = self.table()? else { return Ok(None) };
            let listing = self.list_once(table);
            if self.generation()? == before {
                return listing.map(Some);
            }
        }
        Err(NftError::Changing { attempts: ATTEMPTS }.into())
    }

    fn list_once(&mut self, table: Table) -> Result<TableListing, ListError> {
        let installed = self.read_table(table)?;
        if let Some(foreign) = installed.unmanaged.first() {
            return Err(ListError::Unmanaged { what: described(foreign) });
        }
        let mut ruleset = Ruleset { sets: installed.sets, maps: installed.maps, ..Ruleset::default() };
        for (name, chain) in installed.chains {
            ruleset.chains.insert(name, Arc::new(Chain { base: chain.base, rules: Vec::new() }));
        }
        for (chain, rule) in self.dump(NftMessage::GetRule, "read the rules", read::whole_rule)? {
            add(&mut ruleset, &chain, rule)?;
        }
        for (name, comment) in self.dump(NftMessage::GetChain, "read the chains", read::chain_comment)? {
            ruleset.comments.chains.extend(ChainName::new(&name).ok().map(|name| (name, comment)));
        }
        for (name, comment) in self.dump(NftMessage::GetSet, "read the sets", read::set_comment)? {
            ruleset.comments.sets.extend(SetName::new(&name).ok().map(|name| (name, comment)));
        }
        let flags = [(TableFlag::Owner, table::FLAG_OWNER), (TableFlag::Persist, table::FLAG_PERSIST)];
        let flags = flags.into_iter().filter(|(_, bit)| table.flags & bit != 0).map(|(flag, _)| flag).collect();
        Ok(TableListing { flags, ruleset })
    }
}

fn described(foreign: &Unmanaged) -> String {
    match foreign {
        Unmanaged::Set(name) => format!("set {name}"),
        Unmanaged::Map(name) => format!("map {name}"),
        Unmanaged::Chain(name) => format!("chain {name}"),
        Unmanaged::Other(what) => what.clone(),
    }
}

fn add(ruleset: &mut Ruleset, chain: &str, rule: Option<Rule>) -> Result<(), ListError> {
    let all = ChainName::new(chain).ok().and_then(|name| ruleset.chains.get_mut(&name)).map(Arc::make_mut);
    let number = all.as_ref().map_or(0, |chain| chain.rules.len()) + 1;
    let unmanaged = || ListError::Unmanaged { what: format!("rule {number} of chain {chain}") };
    let (Some(all), Some(rule)) = (all, rule) else { return Err(unmanaged()) };
    all.rules.push(rule);
    Ok(())
}
