//! The table in the kernel: over nf_tables netlink, on one socket that stays open, in the network namespace of the thread
//! that opened it.
//!
//! Linux 6.9 and later let the socket own the table (`NFT_TABLE_F_OWNER` with `NFT_TABLE_F_PERSIST`): nobody else can change
//! it, `nft flush ruleset` leaves it alone, and when the process ends, however it ends, the table stays and the next agent
//! adopts it. On an older kernel everybody can change it, and such a drift is repaired after a notification
//! ([`super::NftEvents`]).
//!
//! Guarantees: what packets meet changes as a whole or not at all; a rejected transaction names its step; no process is
//! started.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;
use towpath_core::{
    names::{ChainName, SetName, TABLE},
    ruleset::{Installed, InstalledChain, Set, Step, Transaction, Unmanaged, VerdictMap},
};

use super::{
    Nft, NftError, TableChange,
    batch::{Lookups, NftBatch, add_table},
    events::generation,
    own::OwnChanges,
    read::{self, RawElement, SetDeclaration, Table, UserData},
    wire::{NftMessage, OBJECT_TABLE, SUBSYSTEM, element, set, table},
};
use crate::nfnetlink::{BatchError, BatchMode, NetlinkError, NfnetlinkMessage, NfnetlinkRequest, NfnetlinkSocket};

/// How often a table is read back that others change at the same time.
pub(super) const ATTEMPTS: u32 = 8;

/// How many characters of a rejected step an error has: lists of elements are long.
const MAX_STEP: usize = 512;

/// Who may change the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Only the socket that owns it.
    Exclusive,
    /// Every process with NET_ADMIN: the kernel is older than 6.9.
    Shared,
}

impl Ownership {
    /// The table's flags.
    pub(super) const fn flags(self) -> u32 {
        match self {
            Self::Exclusive => table::FLAG_OWNER | table::FLAG_PERSIST,
            Self::Shared => 0,
        }
    }
}

/// Our table in the kernel.
#[derive(Debug)]
pub struct KernelNft {
    socket: NfnetlinkSocket,
    ownership: Ownership,
    own_changes: OwnChanges,
}

impl KernelNft {
    /// Opens the table of the calling thread's network namespace, with ownership if the kernel supports it.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or permission is denied.
    pub fn open() -> Result<Self, NftError> {
        let mut nft = Self::open_as(Ownership::Exclusive)?;
        let mut probe = NftMessage::NewTable.request();
        probe.body.text(table::NAME, "towpath-probe").be32(table::FLAGS, Ownership::Exclusive.flags());
        match nft.socket.batch(SUBSYSTEM, &[probe], BatchMode::DryRun) {
            Ok(()) => {}
            Err(error) if matches!(error.source.errno(), Some(Errno::EOPNOTSUPP | Errno::EINVAL)) => {
                nft.ownership = Ownership::Shared;
            }
            Err(error) => return Err(netlink("probe for table ownership")(error.source)),
        }
        Ok(nft)
    }

    /// The same, with a given ownership instead of a probe.
    ///
    /// # Errors
    /// If permission is denied.
    pub fn open_as(ownership: Ownership) -> Result<Self, NftError> {
        let socket = NfnetlinkSocket::open().map_err(netlink("open a socket"))?;
        Ok(Self { socket, ownership, own_changes: OwnChanges::default() })
    }

    /// Who may change the table, once it is created or adopted.
    #[must_use]
    pub const fn ownership(&self) -> Ownership {
        self.ownership
    }

    pub(super) fn table(&mut self) -> Result<Option<Table>, NftError> {
        match self.socket.get(&of_table(NftMessage::GetTable), |message| read::table(&message)) {
            Ok(table) => Ok(table),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(netlink("read the table")(error)),
        }
    }

    /// Adopts a table that outlived its owner; nobody else can change it from then on.
    fn adopt(&mut self, table: Table) -> Result<(), NftError> {
        if self.ownership == Ownership::Shared {
            return Ok(());
        }
        match table.owner {
            Some(port) if port == self.socket.port() => Ok(()),
            Some(port) => Err(NftError::Owned { port }),
            None if table.flags & table::FLAG_PERSIST == 0 => Ok(()),
            None => {
                let before = self.generation()?;
                let adopted =
                    self.socket.batch(SUBSYSTEM, &[add_table(Some(self.ownership.flags()))], BatchMode::Commit);
                adopted.map_err(|error| netlink("adopt the table")(error.source))?;
                let after = self.generation()?;
                self.own_changes.applied(before, after);
                Ok(())
            }
        }
    }

    pub(super) fn generation(&mut self) -> Result<u32, NftError> {
        let message = self.socket.get(&NftMessage::GetGeneration.request(), |message| Some(generation(&message)?.0));
        let missing =
            || NetlinkError::Socket { step: "read the generation", source: std::io::ErrorKind::InvalidData.into() };
        message.and_then(|generation| generation.ok_or_else(missing)).map_err(netlink("read the generation"))
    }

    pub(super) fn dump<T>(
        &mut self,
        message: NftMessage,
        what: &'static str,
        read: impl Fn(&NfnetlinkMessage<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        self.socket.dump(&of_table(message), |message| read(&message)).map_err(netlink(what))
    }

    pub(super) fn read_table(&mut self, table: Table) -> Result<Installed, NftError> {
        let mut all = Installed::default();
        if table.userdata == UserData::Present || table.flags & !Ownership::Exclusive.flags() != 0 {
            all.unmanaged.insert(Unmanaged::Other("flags or a comment of the table".to_owned()));
        }
        if self.ownership == Ownership::Exclusive && table.flags & table::FLAG_PERSIST == 0 {
            all.unmanaged.insert(Unmanaged::Other("the table's lack of an owner".to_owned()));
        }
        self.read_chains(&mut all)?;
        self.read_sets(&mut all)?;
        for (message, kind) in [(NftMessage::GetObject, "object"), (NftMessage::GetFlowtable, "flowtable")] {
            let others = self.dump(message, "read the table's objects", read::other)?;
            all.unmanaged.extend(others.into_iter().map(|name| Unmanaged::Other(format!("{kind} {name}"))));
        }
        Ok(all)
    }

    fn read_chains(&mut self, all: &mut Installed) -> Result<(), NftError> {
        for (name, base) in self.dump(NftMessage::GetChain, "read the chains", read::chain)? {
            match (ChainName::new(&name), base) {
                (Ok(name), Ok(base)) => _ = all.chains.insert(name, InstalledChain { base, rules: Vec::new() }),
                (Ok(name), Err(())) => _ = all.unmanaged.insert(Unmanaged::Chain(name)),
                (Err(_), _) => _ = all.unmanaged.insert(unmanaged_name("chain", &name)),
            }
        }
        for (chain, fingerprint) in self.dump(NftMessage::GetRule, "read the rules", read::rule)? {
            if let Some(chain) = ChainName::new(&chain).ok().and_then(|chain| all.chains.get_mut(&chain)) {
                chain.rules.push(fingerprint);
            }
        }
        Ok(())
    }

    fn read_sets(&mut self, all: &mut Installed) -> Result<(), NftError> {
        for (name, declared) in self.dump(NftMessage::GetSet, "read the sets", read::set)? {
            let Ok(name) = SetName::new(&name) else {
                all.unmanaged.insert(unmanaged_name("set", &name));
                continue;
            };
            match declared {
                SetDeclaration::UnmanagedSet => _ = all.unmanaged.insert(Unmanaged::Set(name)),
                SetDeclaration::UnmanagedMap => _ = all.unmanaged.insert(Unmanaged::Map(name)),
                SetDeclaration::Set(key, lookup) => {
                    match self.read_elements(&name)?.and_then(|raw| read::set_elements(&key, lookup, raw)) {
                        Some(elements) => _ = all.sets.insert(name, Set { key, lookup, elements }),
                        None => _ = all.unmanaged.insert(Unmanaged::Set(name)),
                    }
                }
                SetDeclaration::Map(key) => {
                    match self.read_elements(&name)?.and_then(|raw| read::map_elements(&key, raw)) {
                        Some(elements) => _ = all.maps.insert(name, VerdictMap { key, elements }),
                        None => _ = all.unmanaged.insert(Unmanaged::Map(name)),
                    }
                }
            }
        }
        Ok(())
    }

    /// `None` if we would not have created one of the elements.
    fn read_elements(&mut self, name: &SetName) -> Result<Option<Vec<RawElement>>, NftError> {
        let mut request = of_table(NftMessage::GetElement);
        request.body.text(element::LIST_SET, name.as_str());
        let lists = self.socket.dump(&request, |message| read::elements(&message)).map_err(netlink("read a set"))?;
        let lists: Result<Vec<_>, ()> = lists.into_iter().collect();
        Ok(lists.ok().map(|lists| lists.into_iter().flatten().collect()))
    }

    /// The lookups of the sets that a transaction changes and does not create.
    fn lookups(&mut self, transaction: &Transaction) -> Result<Lookups, NftError> {
        let mut created = BTreeSet::new();
        let mut names = BTreeSet::new();
        for step in transaction.steps() {
            if let Step::AddSet(name, ..) = step {
                created.insert(name);
            } else if let Step::AddElements(name, _) | Step::DeleteElements(name, _) = step
                && !created.contains(name)
            {
                names.insert(name);
            }
        }
        let mut lookups = BTreeMap::new();
        for name in names {
            let mut request = of_table(NftMessage::GetSet);
            request.body.text(set::NAME, name.as_str());
            match self.socket.get(&request, |message| read::lookup(&message)) {
                Ok(lookup) => lookups.extend(lookup.map(|lookup| (name.clone(), lookup))),
                // The kernel rejects the step that names it.
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(netlink("read the lookup of a set")(error)),
            }
        }
        Ok(lookups)
    }

    /// Commits a transaction in one batch.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        let lookups = self.lookups(transaction)?;
        let batch = NftBatch::new(transaction, self.ownership, lookups);
        let before = self.generation()?;
        match self.socket.batch(SUBSYSTEM, &batch.requests, BatchMode::Commit) {
            Ok(()) => {
                let after = self.generation()?;
                self.own_changes.applied(before, after);
                Ok(())
            }
            Err(error) => Err(self.commit_error(error, &batch, transaction)),
        }
    }

    fn commit_error(&mut self, error: BatchError, batch: &NftBatch, transaction: &Transaction) -> NftError {
        if error.source.errno() == Some(Errno::EPERM)
            && let Ok(Some(Table { owner: Some(port), .. })) = self.table()
            && port != self.socket.port()
        {
            return NftError::Owned { port };
        }
        let step = error.request.and_then(|place| transaction.steps().get(*batch.steps.get(place)?));
        match step {
            Some(step) => NftError::Rejected { step: truncated(step.to_string()), source: error.source },
            None => netlink("commit a transaction")(error.source),
        }
    }
}

impl Nft for KernelNft {
    fn read_back(&mut self) -> Result<Option<Installed>, NftError> {
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let Some(table) = self.table()? else { return Ok(None) };
            self.adopt(table)?;
            let is_ours_alone = self.ownership == Ownership::Exclusive && table.flags & table::FLAG_PERSIST != 0;
            let all = self.read_table(table)?;
            if is_ours_alone || self.generation()? == before {
                return Ok(Some(all));
            }
        }
        Err(NftError::Changing { attempts: ATTEMPTS })
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        if transaction.is_empty() {
            return Ok(());
        }
        transaction.stages().iter().try_for_each(|stage| self.commit(stage))
    }

    fn is_own(&mut self, change: &TableChange) -> bool {
        match change {
            TableChange::Changed { generation, .. } => self.own_changes.take(*generation),
            TableChange::Overrun => false,
        }
    }
}

/// A request for objects of our table.
fn of_table(message: NftMessage) -> NfnetlinkRequest {
    let mut request = message.request();
    request.body.text(OBJECT_TABLE, TABLE);
    request
}

/// An object with a name that none of ours has.
fn unmanaged_name(kind: &str, name: &str) -> Unmanaged {
    Unmanaged::Other(format!("{kind} {name:?}"))
}

fn truncated(step: String) -> String {
    match step.char_indices().nth(MAX_STEP) {
        Some((end, _)) => format!("{}…", &step[..end]),
        None => step,
    }
}

/// The error of a step.
pub(super) fn netlink(step: &'static str) -> impl FnOnce(NetlinkError) -> NftError {
    move |source| NftError::Netlink { step, source }
}
