//! The real table: over nf_tables netlink, on one socket that is kept, in the network namespace of the thread that opened
//! it.
//!
//! The socket owns the table where the kernel knows how (6.9 and later, `NFT_TABLE_F_OWNER` with `NFT_TABLE_F_PERSIST`):
//! then nobody else can change it, a flush of the whole ruleset passes it by, and when the process ends, however it
//! ends, the table stays and can be taken over. On an older kernel anybody can change it, and what they changed is put
//! right when [`super::NftEvents`] tells of it.
//!
//! Guarantees: what packets meet changes as a whole or not at all; a transaction that is refused names its step. No process
//! is started.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;
use towpath_core::{
    names::{ChainName, SetName, TABLE},
    ruleset::{Installed, InstalledChain, Set, Step, Transaction, Unmanaged, VerdictMap},
};

use super::{
    Nft, NftError, TableChange,
    batch::{Batch, Lookups, add_table},
    events::generation,
    own::OwnChanges,
    read::{self, Comment, Declared, Raw, Table},
    wire::{Message, SUBSYSTEM, TABLE_OF, element, set, table},
};
use crate::nfnetlink::{BatchError, BatchMode, NetlinkError, NfnetlinkMessage, NfnetlinkRequest, NfnetlinkSocket};

/// How often a table is read again that others change meanwhile.
pub(super) const ATTEMPTS: u32 = 8;

/// How many characters of a refused step are told: lines of elements are long.
const MAX_STEP: usize = 512;

/// Who may change the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// Nobody but the socket that owns it.
    Exclusive,
    /// Everybody: the kernel is older than 6.9.
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
    own: OwnChanges,
}

impl KernelNft {
    /// For the network namespace of the calling thread, with as much ownership as the kernel knows.
    ///
    /// # Errors
    /// If the kernel has no nf_tables, or does not let us near it.
    pub fn open() -> Result<Self, NftError> {
        let mut nft = Self::open_as(Ownership::Exclusive)?;
        let mut probe = Message::NewTable.request();
        probe.body.text(table::NAME, "towpath-probe").be32(table::FLAGS, Ownership::Exclusive.flags());
        match nft.socket.batch(SUBSYSTEM, &[probe], BatchMode::DryRun) {
            Ok(()) => {}
            Err(refused) if matches!(refused.source.errno(), Some(Errno::EOPNOTSUPP | Errno::EINVAL)) => {
                nft.ownership = Ownership::Shared;
            }
            Err(refused) => return Err(netlink("try who may own a table")(refused.source)),
        }
        Ok(nft)
    }

    /// The same, with an ownership that is told and not found out.
    ///
    /// # Errors
    /// If the kernel does not let us near netfilter.
    pub fn open_as(ownership: Ownership) -> Result<Self, NftError> {
        let socket = NfnetlinkSocket::open().map_err(netlink("open a socket"))?;
        Ok(Self { socket, ownership, own: OwnChanges::default() })
    }

    /// Who may change the table, once it is made or taken over.
    #[must_use]
    pub const fn ownership(&self) -> Ownership {
        self.ownership
    }

    pub(super) fn table(&mut self) -> Result<Option<Table>, NftError> {
        match self.socket.get(&of_table(Message::GetTable), |answer| read::table(&answer)) {
            Ok(table) => Ok(table),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(netlink("read the table")(error)),
        }
    }

    /// Makes a table ours that outlived its owner; nobody can change it from then on.
    fn take_over(&mut self, table: Table) -> Result<(), NftError> {
        if self.ownership == Ownership::Shared {
            return Ok(());
        }
        match table.owner {
            Some(port) if port == self.socket.port() => Ok(()),
            Some(port) => Err(NftError::Owned { port }),
            None if table.flags & table::FLAG_PERSIST == 0 => Ok(()),
            None => {
                let before = self.generation()?;
                let taken = self.socket.batch(SUBSYSTEM, &[add_table(Some(self.ownership.flags()))], BatchMode::Commit);
                taken.map_err(|refused| netlink("take the table over")(refused.source))?;
                let after = self.generation()?;
                self.own.applied(before, after);
                Ok(())
            }
        }
    }

    pub(super) fn generation(&mut self) -> Result<u32, NftError> {
        let answer = self.socket.get(&Message::GetGeneration.request(), |answer| Some(generation(&answer)?.0));
        let missing =
            || NetlinkError::Socket { step: "read the generation", source: std::io::ErrorKind::InvalidData.into() };
        answer.and_then(|generation| generation.ok_or_else(missing)).map_err(netlink("read the generation"))
    }

    pub(super) fn dump<T>(
        &mut self,
        message: Message,
        what: &'static str,
        read: impl Fn(&NfnetlinkMessage<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        self.socket.dump(&of_table(message), |answer| read(&answer)).map_err(netlink(what))
    }

    pub(super) fn read_table(&mut self, table: Table) -> Result<Installed, NftError> {
        let mut all = Installed::default();
        if table.comment == Comment::Some || table.flags & !Ownership::Exclusive.flags() != 0 {
            all.foreign.insert(Unmanaged::Other("flags or a comment of the table".to_owned()));
        }
        if self.ownership == Ownership::Exclusive && table.flags & table::FLAG_PERSIST == 0 {
            all.foreign.insert(Unmanaged::Other("the table's lack of an owner".to_owned()));
        }
        self.read_chains(&mut all)?;
        self.read_sets(&mut all)?;
        for (message, kind) in [(Message::GetObject, "object"), (Message::GetFlowtable, "flowtable")] {
            let others = self.dump(message, "read the table's objects", read::other)?;
            all.foreign.extend(others.into_iter().map(|name| Unmanaged::Other(format!("{kind} {name}"))));
        }
        Ok(all)
    }

    fn read_chains(&mut self, all: &mut Installed) -> Result<(), NftError> {
        for (name, base) in self.dump(Message::GetChain, "read the chains", read::chain)? {
            match (ChainName::new(&name), base) {
                (Ok(name), Ok(base)) => _ = all.chains.insert(name, InstalledChain { base, rules: Vec::new() }),
                (Ok(name), Err(())) => _ = all.foreign.insert(Unmanaged::Chain(name)),
                (Err(_), _) => _ = all.foreign.insert(odd_name("chain", &name)),
            }
        }
        for (chain, fingerprint) in self.dump(Message::GetRule, "read the rules", read::rule)? {
            if let Some(chain) = ChainName::new(&chain).ok().and_then(|chain| all.chains.get_mut(&chain)) {
                chain.rules.push(fingerprint);
            }
        }
        Ok(())
    }

    fn read_sets(&mut self, all: &mut Installed) -> Result<(), NftError> {
        for (name, declared) in self.dump(Message::GetSet, "read the sets", read::set)? {
            let Ok(name) = SetName::new(&name) else {
                all.foreign.insert(odd_name("set", &name));
                continue;
            };
            match declared {
                Declared::ForeignSet => _ = all.foreign.insert(Unmanaged::Set(name)),
                Declared::ForeignMap => _ = all.foreign.insert(Unmanaged::Map(name)),
                Declared::Set(key, lookup) => {
                    match self.read_elements(&name)?.and_then(|raw| read::set_elements(&key, lookup, raw)) {
                        Some(elements) => _ = all.sets.insert(name, Set { key, lookup, elements }),
                        None => _ = all.foreign.insert(Unmanaged::Set(name)),
                    }
                }
                Declared::Map(key) => match self.read_elements(&name)?.and_then(|raw| read::map_elements(&key, raw)) {
                    Some(elements) => _ = all.maps.insert(name, VerdictMap { key, elements }),
                    None => _ = all.foreign.insert(Unmanaged::Map(name)),
                },
            }
        }
        Ok(())
    }

    /// `None` if one of the elements is not of our kind.
    fn read_elements(&mut self, name: &SetName) -> Result<Option<Vec<Raw>>, NftError> {
        let mut request = of_table(Message::GetElement);
        request.body.text(element::LIST_SET, name.as_str());
        let lists = self.socket.dump(&request, |answer| read::elements(&answer)).map_err(netlink("read a set"))?;
        let lists: Result<Vec<_>, ()> = lists.into_iter().collect();
        Ok(lists.ok().map(|lists| lists.into_iter().flatten().collect()))
    }

    /// How the sets find their elements that a transaction changes and does not make.
    fn lookups(&mut self, transaction: &Transaction) -> Result<Lookups, NftError> {
        let mut made = BTreeSet::new();
        let mut names = BTreeSet::new();
        for step in transaction.steps() {
            if let Step::AddSet(name, ..) = step {
                made.insert(name);
            } else if let Step::AddElements(name, _) | Step::DeleteElements(name, _) = step
                && !made.contains(name)
            {
                names.insert(name);
            }
        }
        let mut lookups = BTreeMap::new();
        for name in names {
            let mut request = of_table(Message::GetSet);
            request.body.text(set::NAME, name.as_str());
            match self.socket.get(&request, |answer| read::lookup(&answer)) {
                Ok(lookup) => lookups.extend(lookup.map(|lookup| (name.clone(), lookup))),
                // The kernel will refuse the step that names it, and say so.
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                Err(error) => return Err(netlink("read how a set is looked up")(error)),
            }
        }
        Ok(lookups)
    }

    /// Has the kernel do it as a whole or not at all.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        let lookups = self.lookups(transaction)?;
        let batch = Batch::new(transaction, self.ownership, lookups);
        let before = self.generation()?;
        match self.socket.batch(SUBSYSTEM, &batch.requests, BatchMode::Commit) {
            Ok(()) => {
                let after = self.generation()?;
                self.own.applied(before, after);
                Ok(())
            }
            Err(refused) => Err(self.refused(refused, &batch, transaction)),
        }
    }

    fn refused(&mut self, refused: BatchError, batch: &Batch, transaction: &Transaction) -> NftError {
        if refused.source.errno() == Some(Errno::EPERM)
            && let Ok(Some(Table { owner: Some(port), .. })) = self.table()
            && port != self.socket.port()
        {
            return NftError::Owned { port };
        }
        let step = refused.request.and_then(|place| transaction.steps().get(*batch.steps.get(place)?));
        match step {
            Some(step) => NftError::Refused { step: shortened(step.to_string()), source: refused.source },
            None => netlink("carry a transaction out")(refused.source),
        }
    }
}

impl Nft for KernelNft {
    fn read_back(&mut self) -> Result<Option<Installed>, NftError> {
        for _ in 0..ATTEMPTS {
            let before = self.generation()?;
            let Some(table) = self.table()? else { return Ok(None) };
            self.take_over(table)?;
            let is_ours_alone = self.ownership == Ownership::Exclusive && table.flags & table::FLAG_PERSIST != 0;
            let all = self.read_table(table)?;
            if is_ours_alone || self.generation()? == before {
                return Ok(Some(all));
            }
        }
        Err(NftError::Unsteady { attempts: ATTEMPTS })
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        if transaction.is_empty() {
            return Ok(());
        }
        transaction.stages().iter().try_for_each(|stage| self.commit(stage))
    }

    fn is_own(&mut self, change: &TableChange) -> bool {
        match change {
            TableChange::Changed { generation, .. } => self.own.take(*generation),
            TableChange::Overrun => false,
        }
    }
}

/// A request about our table.
fn of_table(message: Message) -> NfnetlinkRequest {
    let mut request = message.request();
    request.body.text(TABLE_OF, TABLE);
    request
}

/// A name that our own could not be: nothing of ours has it.
fn odd_name(kind: &str, name: &str) -> Unmanaged {
    Unmanaged::Other(format!("{kind} {name:?}"))
}

fn shortened(step: String) -> String {
    match step.char_indices().nth(MAX_STEP) {
        Some((end, _)) => format!("{}…", &step[..end]),
        None => step,
    }
}

pub(super) fn netlink(step: &'static str) -> impl FnOnce(NetlinkError) -> NftError {
    move |source| NftError::Netlink { step, source }
}
