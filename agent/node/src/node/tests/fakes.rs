//! Fakes that execute: the kernel's network and table, and its conntrack entries.

use std::{collections::BTreeMap, fmt, time::Duration};

use towpath_core::{
    connection::{Connection, Reevaluation},
    overlay::{Kernel, NetOp},
    ruleset::{Transaction, fake::FakeTable},
};

use crate::{
    AddressSet, ApplyResult, FailedOps, KernelChange, KernelPart, KernelResult, LocalPod, NetworkReadBack,
    ReevaluateOutcome,
};

/// Says of a change whether it is rejected.
type Fault = Box<dyn Fn(&NetOp) -> bool>;

/// The kernel: what it has, and what was changed in it.
pub(super) struct FakeKernel {
    /// A test may change it, as another program would.
    pub(super) network: Kernel,
    /// The same.
    pub(super) table: FakeTable,
    /// Committed transactions, in their order.
    pub(super) transactions: Vec<Transaction>,
    /// Changes of the network, in their order.
    pub(super) ops: Vec<NetOp>,
    /// How many of the next transactions are rejected.
    pub(super) reject: usize,
    fault: Option<Fault>,
}

impl FakeKernel {
    pub(super) fn new(network: Kernel) -> Self {
        let (table, transactions, ops) = (FakeTable::default(), Vec::new(), Vec::new());
        Self { network, table, transactions, ops, reject: 0, fault: None }
    }

    /// Rejects the changes of the network of which the function says so, until [`FakeKernel::heal`].
    pub(super) fn reject_ops(&mut self, fault: impl Fn(&NetOp) -> bool + 'static) {
        self.fault = Some(Box::new(fault));
    }

    pub(super) fn heal(&mut self) {
        self.fault = None;
    }

    pub(super) fn read(&self, part: KernelPart, pods: impl FnOnce() -> Vec<LocalPod>) -> KernelResult {
        match part {
            KernelPart::Network => {
                KernelResult::Network(Ok(NetworkReadBack { kernel: Box::new(self.network.clone()), pods: pods() }))
            }
            KernelPart::Table => KernelResult::Table(Ok(self.table.read_back().map(Box::new))),
        }
    }

    pub(super) fn apply(&mut self, change: &KernelChange) -> ApplyResult {
        let table = self.commit(&change.table);
        let errors: Vec<String> = if table.is_ok() {
            change.network.iter().filter_map(|op| self.change(op).err()).collect()
        } else {
            Vec::new()
        };
        let network = match errors.first() {
            None => Ok(()),
            Some(first) => Err(FailedOps { count: errors.len(), first: first.clone() }),
        };
        ApplyResult { table, network, took: Duration::ZERO }
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<(), String> {
        if transaction.is_empty() {
            return Ok(());
        }
        if let Some(left) = self.reject.checked_sub(1) {
            self.reject = left;
            return Err("requested by the test".to_owned());
        }
        self.table.apply(transaction).map_err(|refusal| refusal.to_string())?;
        self.transactions.push(transaction.clone());
        Ok(())
    }

    fn change(&mut self, op: &NetOp) -> Result<(), String> {
        if self.fault.as_ref().is_some_and(|fault| fault(op)) {
            return Err(format!("could not {op}: requested by the test"));
        }
        self.network.execute(op).map_err(|refusal| format!("could not {op}: {refusal}"))?;
        self.ops.push(op.clone());
        Ok(())
    }
}

impl fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeKernel").field("network", &self.network).field("table", &self.table).finish_non_exhaustive()
    }
}

/// Whether packets of a connection pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FakeConnection {
    Established,
    Revoked,
}

/// Conntrack entries. No address in them is translated.
#[derive(Debug, Default)]
pub(super) struct FakeConntrack {
    pub(super) connections: BTreeMap<Connection, FakeConnection>,
    /// How often they were evaluated again.
    pub(super) reevaluations: usize,
    /// How many of the next requests are rejected.
    pub(super) reject: usize,
}

impl FakeConntrack {
    pub(super) fn reevaluate(&mut self, verdicts: &Reevaluation<'_>) -> Result<ReevaluateOutcome, String> {
        self.rejection()?;
        self.reevaluations += 1;
        let mut outcome = ReevaluateOutcome::default();
        for (connection, state) in &mut self.connections {
            if !verdicts.covers(connection) {
                outcome.still_revoked += usize::from(*state == FakeConnection::Revoked);
                continue;
            }
            match (verdicts.denied_at(connection).map_err(|error| error.to_string())?, *state) {
                (Some(direction), FakeConnection::Established) => {
                    *state = FakeConnection::Revoked;
                    outcome.revoked.push((*connection, direction));
                }
                (Some(_), FakeConnection::Revoked) => outcome.still_revoked += 1,
                (None, FakeConnection::Revoked) => {
                    *state = FakeConnection::Established;
                    outcome.restored += 1;
                }
                (None, FakeConnection::Established) => {}
            }
        }
        Ok(outcome)
    }

    pub(super) fn flush(&mut self, addresses: &AddressSet) -> Result<usize, String> {
        self.rejection()?;
        let before = self.connections.len();
        let contains = |address| match addresses {
            AddressSet::Of(addresses) => addresses.contains(&address),
            AddressSet::Unused { within, except } => {
                within.iter().any(|net| net.contains(&address)) && !except.contains(&address)
            }
        };
        self.connections.retain(|connection, _| !contains(connection.from) && !contains(connection.to));
        Ok(before - self.connections.len())
    }

    fn rejection(&mut self) -> Result<(), String> {
        match self.reject.checked_sub(1) {
            None => Ok(()),
            Some(left) => {
                self.reject = left;
                Err("requested by the test".to_owned())
            }
        }
    }
}
