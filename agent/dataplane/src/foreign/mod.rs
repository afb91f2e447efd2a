//! Tables of other programs, read with `nft -j`: what their base chains at the forward hook do with pod traffic is decided
//! by [`towpath_core::foreign_firewall`].
//!
//! The schema is that of the `nftables` crate, applied to one object, and within a rule to one statement, at a time: what
//! it does not know is counted and taken as unknown, and the rest is read. The crate's own helper is not used: it reads
//! all or nothing, without a time limit.
//!
//! Cost: one process for the list of chains, and one for each table that has a base chain at the forward hook. Such a
//! table is read without the elements of its named sets, and not at all when it has more than [`MAX_CHAINS`] chains, or
//! is kube-proxy's. Our own table is never read here.

mod condition;
mod process;
mod rule;

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use nftables::{schema, types};
use serde::Deserialize;
use serde_json::Value;
use towpath_core::{
    foreign_firewall::{ChainPolicy, ForeignChain, ForeignTable, ForwardHook, TableFamily},
    names::TABLE,
};

pub use process::ProgramError;

/// Tables with more chains are not read. Docker has about ten, firewalld about a hundred; a table of 10,000 chains takes
/// nft four seconds.
pub const MAX_CHAINS: usize = 500;

/// kube-proxy's table in its nftables mode. It has a chain or more for each Service, and what its chains at the forward
/// hook drop is traffic to Services that have no endpoints, never traffic between pods.
const KUBE_PROXY: &str = "kube-proxy";

/// The tables of iptables-legacy in the network namespace of the reader, one name a line; missing without the modules.
const LEGACY_TABLES: [&str; 2] = ["/proc/thread-self/net/ip_tables_names", "/proc/thread-self/net/ip6_tables_names"];

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignFirewalls {
    /// Tables with a base chain at the forward hook, in the order of their families and names.
    pub tables: Vec<ForeignTable>,
    /// Objects and statements that the schema does not know.
    pub skipped: usize,
    /// Whether there is a filter table of iptables-legacy, which nf_tables does not show.
    pub has_legacy_filter: bool,
}

/// Foreign tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadForeignError {
    /// nft did not run, or failed.
    #[error("list the tables of other programs")]
    Program(#[from] ProgramError),
    /// nft printed something else than a list of objects.
    #[error("decode what {command:?} printed")]
    Undecodable {
        /// The command.
        command: String,
        /// Where and why.
        source: serde_json::Error,
    },
}

impl ReadForeignError {
    /// Whether there is no nft on this node: then nothing can be said of other programs' tables.
    #[must_use]
    pub const fn is_missing_program(&self) -> bool {
        matches!(self, Self::Program(ProgramError::Missing))
    }
}

/// What every document of nft is.
#[derive(Deserialize)]
struct NftOutput {
    nftables: Vec<Value>,
}

/// A table by family and name.
type TableKey = (TableFamily, String);

/// Reads the foreign tables of the calling thread's network namespace, within a time.
///
/// # Errors
/// If nft is missing, fails, takes too long, or prints what is no JSON of it.
pub fn read(limit: Duration) -> Result<ForeignFirewalls, ReadForeignError> {
    let until = Instant::now() + limit;
    let mut read = ForeignFirewalls { has_legacy_filter: has_legacy_filter(), ..ForeignFirewalls::default() };
    for ((family, name), mut chains) in list_chains(until, &mut read.skipped)? {
        if !is_at_issue(&name, &chains) {
            continue;
        }
        if chains.len() <= MAX_CHAINS {
            list_rules(family, &name, &mut chains, until, &mut read.skipped)?;
        }
        read.tables.push(ForeignTable { family, name, chains });
    }
    Ok(read)
}

/// Whether a table has a base chain at the forward hook that may drop pod traffic.
fn is_at_issue(table: &str, chains: &BTreeMap<String, ForeignChain>) -> bool {
    let mut hooks = chains.values().filter_map(|chain| chain.forward);
    hooks.any(|hook| table != KUBE_PROXY || hook.policy == ChainPolicy::Drop)
}

/// All chains of foreign tables, without their rules.
fn list_chains(
    until: Instant,
    skipped: &mut usize,
) -> Result<BTreeMap<TableKey, BTreeMap<String, ForeignChain>>, ReadForeignError> {
    let mut tables: BTreeMap<TableKey, BTreeMap<String, ForeignChain>> = BTreeMap::new();
    for object in run(&["-j", "list", "chains"], until)? {
        let Some(chain) = object_of("chain", object) else { continue };
        let Ok(chain) = schema::Chain::deserialize(chain) else {
            *skipped += 1;
            continue;
        };
        let Some(family) = family(chain.family) else { continue };
        if family != TableFamily::Inet || chain.table != TABLE {
            let forward = forward_hook(&chain);
            let table = tables.entry((family, chain.table.into_owned())).or_default();
            table.insert(chain.name.into_owned(), ForeignChain { forward, rules: None });
        }
    }
    Ok(tables)
}

/// Reads the rules of one table into its chains.
fn list_rules(
    family: TableFamily,
    name: &str,
    chains: &mut BTreeMap<String, ForeignChain>,
    until: Instant,
    skipped: &mut usize,
) -> Result<(), ReadForeignError> {
    // Terse: without the elements of named sets, of which there may be tens of thousands.
    let objects = run(&["-j", "-t", "list", "table", &family.to_string(), name], until)?;
    chains.values_mut().for_each(|chain| chain.rules = Some(Vec::new()));
    for object in objects {
        let Some(rule) = object_of("rule", object) else { continue };
        let Some((chain, rules)) = rule::read(rule, skipped) else { continue };
        // A chain that came after the list of chains is read next time.
        if let Some(ForeignChain { rules: Some(all), .. }) = chains.get_mut(&chain) {
            all.extend(rules);
        }
    }
    Ok(())
}

fn run(arguments: &[&str], until: Instant) -> Result<Vec<Value>, ReadForeignError> {
    let printed = process::nft(arguments, until)?;
    let document: NftOutput = serde_json::from_slice(&printed)
        .map_err(|source| ReadForeignError::Undecodable { command: process::command_line(arguments), source })?;
    Ok(document.nftables)
}

/// The value of an object of this kind.
fn object_of(kind: &str, mut object: Value) -> Option<Value> {
    object.get_mut(kind).map(Value::take)
}

const fn family(family: types::NfFamily) -> Option<TableFamily> {
    match family {
        types::NfFamily::IP => Some(TableFamily::Ip),
        types::NfFamily::IP6 => Some(TableFamily::Ip6),
        types::NfFamily::INet => Some(TableFamily::Inet),
        types::NfFamily::ARP | types::NfFamily::Bridge | types::NfFamily::NetDev => None,
    }
}

fn forward_hook(chain: &schema::Chain<'_>) -> Option<ForwardHook> {
    let policy = match chain.policy {
        Some(types::NfChainPolicy::Drop) => ChainPolicy::Drop,
        Some(types::NfChainPolicy::Accept) | None => ChainPolicy::Accept,
    };
    (chain.hook == Some(types::NfHook::Forward)).then(|| ForwardHook { priority: chain.prio.unwrap_or(0), policy })
}

fn has_legacy_filter() -> bool {
    // Unreadable is as good as missing: it is only logged.
    let has_filter =
        |path: &&str| fs::read_to_string(path).is_ok_and(|names| names.lines().any(|name| name == "filter"));
    LEGACY_TABLES.iter().any(has_filter)
}
