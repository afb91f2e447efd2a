//! The thread that reads the firewalls of other programs: at the start, at each resync, and soon after a change at the
//! forward hook is notified. What they do with pod traffic is decided by the node.
//!
//! Reading runs `nft` and decodes what it prints, so it is done aside of the daemon and of the kernel thread, and not more
//! often than [`Pace::between`].

use std::{
    thread,
    time::{Duration, Instant},
};

use towpath_core::foreign_firewall::ForeignTable;
use towpath_dataplane::{
    foreign::{self, ForeignFirewalls, ReadForeignError},
    nft::{ForeignChange, ForeignListener, NftError},
};
use tracing::{debug, error, info, warn};

use crate::error_text::with_causes;

/// When to read.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Time between two readings when nothing is notified.
    pub resync: Duration,
    /// Time between two readings at least.
    pub between: Duration,
    /// How long changes are gathered before they are read: one command makes many.
    pub gather: Duration,
    /// Most that a reading takes.
    pub limit: Duration,
}

impl Pace {
    /// The agent's, with a resync of 5 minutes plus or minus a fifth; `jitter` is 0 to 999.
    #[must_use]
    pub fn new(jitter: u32) -> Self {
        Self {
            resync: Duration::from_secs(300) * (800 + jitter * 2 / 5) / 1000,
            between: Duration::from_secs(10),
            gather: Duration::from_millis(200),
            limit: Duration::from_secs(10),
        }
    }
}

/// Starts the thread in the network namespace of the calling thread. It ends when `send` returns false, or when there is
/// no nft.
///
/// # Errors
/// If the kernel has no nf_tables, or the thread cannot be started.
pub fn spawn(pace: Pace, send: impl FnMut(Vec<ForeignTable>) -> bool + Send + 'static) -> anyhow::Result<()> {
    let listener = ForeignListener::open()?;
    let watch = Watch { pace, listener: Some(listener), tables: Vec::new(), failing: false, has_legacy_filter: false };
    thread::Builder::new().name("foreign-fw".to_owned()).spawn(move || watch.run(send))?;
    Ok(())
}

struct Watch {
    pace: Pace,
    /// `None` when it has failed.
    listener: Option<ForeignListener>,
    /// As they were read last.
    tables: Vec<ForeignTable>,
    failing: bool,
    has_legacy_filter: bool,
}

impl Watch {
    fn run(mut self, mut send: impl FnMut(Vec<ForeignTable>) -> bool) {
        loop {
            // What is notified from here on may be missing in the reading.
            self.listening(ForeignListener::drain);
            let start = Instant::now();
            match foreign::read(self.pace.limit) {
                Ok(read) => {
                    self.log(&read, start);
                    self.tables.clone_from(&read.tables);
                    if !send(read.tables) {
                        return;
                    }
                }
                Err(error) if error.is_missing_program() => {
                    info!("nft is not installed; firewalls of other programs are not checked");
                    return;
                }
                Err(error) => self.failed(&error),
            }
            self.wait(start);
        }
    }

    /// Waits for the resync, or for a change, but not less than the pace allows.
    fn wait(&mut self, start: Instant) {
        let resync = start + self.pace.resync;
        let tables = std::mem::take(&mut self.tables);
        let change = self.listening(|listener| listener.wait(resync, &tables));
        self.tables = tables;
        let until = match change {
            Some(ForeignChange::Forward) => (start + self.pace.between).max(Instant::now() + self.pace.gather),
            Some(ForeignChange::Nothing) | None => resync,
        };
        thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    /// Uses the listener while there is one.
    fn listening<T>(&mut self, listen: impl FnOnce(&mut ForeignListener) -> Result<T, NftError>) -> Option<T> {
        match listen(self.listener.as_mut()?) {
            Ok(value) => Some(value),
            Err(failed) => {
                let error = with_causes(&failed);
                error!(error, "notifications of other programs' tables ended; they are read at the resync only");
                self.listener = None;
                None
            }
        }
    }

    fn log(&mut self, read: &ForeignFirewalls, start: Instant) {
        let millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        debug!(tables = read.tables.len(), skipped = read.skipped, millis, "foreign tables read");
        self.failing = false;
        if read.has_legacy_filter && !self.has_legacy_filter {
            info!(
                "iptables-legacy has a filter table on this node; nf_tables does not show it, so it is not checked \
                 whether it drops pod traffic: see iptables-legacy -S FORWARD"
            );
        }
        self.has_legacy_filter = read.has_legacy_filter;
    }

    /// The first of a row is a warning.
    fn failed(&mut self, failed: &ReadForeignError) {
        let error = with_causes(failed);
        if std::mem::replace(&mut self.failing, true) {
            debug!(error, "foreign tables not read");
        } else {
            warn!(error, "foreign tables not read; whether they drop pod traffic is as it was known before");
        }
    }
}
