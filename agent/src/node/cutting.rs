//! When the connections that are under way are to be looked through.
//!
//! Level-triggered: after each commit that may deny what was allowed, after any while connections are cut (they may be
//! allowed again), and once at the start, because nobody knows what changed while the agent was away. A commit during a
//! review makes another one due.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use towpath_core::{
    connection::narrows,
    ruleset::{Ruleset, Transaction},
};
use towpath_crds::network_config::OnChange;
use towpath_dataplane::conntrack::ConntrackError;
use tracing::info;

use super::{Effect, Node, back_off::BackOff, outcome::Outcome, state::Busy};
use crate::connections::{Cleared, Cuts, Order};

/// How many times as long as a review took the next one waits at least, and at most: under a steady stream of changes
/// reviews take a tenth of a core, and whatever is denied is cut well within a second.
const GAP: (u32, Duration) = (9, Duration::from_millis(500));

/// What a commit means for connections that are under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    /// Some may be denied.
    Narrows,
    /// None is.
    Widens,
}

#[derive(Debug)]
enum Stage {
    /// Connections live on, whatever the policies say.
    Never,
    /// Nothing to do.
    Rest,
    /// Not before that time.
    Due(Instant),
    /// Under way.
    Running,
    /// Under way, and already out of date.
    Outdated,
}

/// The state of it.
#[derive(Debug)]
pub(super) struct Cutting {
    stage: Stage,
    not_before: Instant,
    /// What the plan that is being put in force does.
    planned: Meaning,
    /// Connections that are cut.
    held: usize,
    back_off: BackOff,
}

impl Cutting {
    pub(super) fn new(on_change: OnChange, now: Instant) -> Self {
        let stage = match on_change {
            OnChange::Reevaluate => Stage::Due(now),
            OnChange::Keep => Stage::Never,
        };
        Self { stage, not_before: now, planned: Meaning::Widens, held: 0, back_off: BackOff::default() }
    }

    /// This change is about to be made.
    pub(super) fn planned(&mut self, change: &Transaction, table: &Ruleset) {
        self.planned = match self.stage {
            Stage::Never => Meaning::Widens,
            _ if narrows(change, table) || (self.held > 0 && !change.is_empty()) => Meaning::Narrows,
            _ => Meaning::Widens,
        };
    }

    /// The change is made.
    pub(super) fn committed(&mut self, now: Instant) {
        match (self.planned, &self.stage) {
            (Meaning::Widens, _) | (_, Stage::Never | Stage::Due(_) | Stage::Outdated) => {}
            (Meaning::Narrows, Stage::Rest) => self.stage = Stage::Due(self.not_before.max(now)),
            (Meaning::Narrows, Stage::Running) => self.stage = Stage::Outdated,
        }
    }

    /// Whether a review is to begin now; it has then begun.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        let begins = matches!(self.stage, Stage::Due(at) if at <= now);
        if begins {
            self.stage = Stage::Running;
        }
        begins
    }

    /// A review has ended.
    pub(super) fn ended(&mut self, now: Instant, result: Result<&Cuts, &(dyn Error + 'static)>) {
        match result {
            Ok(cuts) => {
                self.back_off.succeeded();
                self.held = cuts.held;
                self.not_before = now + cuts.took.saturating_mul(GAP.0).min(GAP.1);
                let outdated = matches!(self.stage, Stage::Outdated);
                self.stage = if outdated { Stage::Due(self.not_before) } else { Stage::Rest };
                say(cuts);
            }
            Err(error) => {
                let pause = self.back_off.failed("connections not looked through", error);
                self.stage = Stage::Due(now + pause);
            }
        }
    }

    /// When [`Cutting::begins`] says yes.
    pub(super) const fn due(&self) -> Option<Instant> {
        match self.stage {
            Stage::Due(at) => Some(at),
            Stage::Never | Stage::Rest | Stage::Running | Stage::Outdated => None,
        }
    }
}

impl Node {
    /// Whether the kernel has the rules of the latest plan.
    pub(super) fn rules_in_force(&self) -> bool {
        self.plan.is_some() && self.table_outcome == Outcome::Done && !matches!(self.busy, Busy::Applying(_))
    }

    /// Has the connections looked through if that is due: with the rules that are in force, never with those that are
    /// on their way.
    pub(super) fn review(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let (true, Some(plan), Some(net), Some(snapshot)) =
            (self.rules_in_force(), &self.plan, &self.net.have, self.index.snapshot())
        else {
            return;
        };
        if self.cutting.begins(now) {
            effects.push(Effect::Review(Box::new(Order {
                table: plan.table.clone(),
                endpoints: self.index.endpoints().clone(),
                node: net.addresses.values().flatten().map(IpNet::addr).collect(),
                snapshot: snapshot.clone(),
            })));
        }
    }

    pub(super) fn reviewed(&mut self, now: Instant, result: &Result<Cuts, ConntrackError>, effects: &mut Vec<Effect>) {
        self.cutting.ended(now, result.as_ref().map_err(|error| error as _));
        effects.extend(result.as_ref().map(|cuts| Effect::Cut(cuts.cut as u64)));
    }

    /// Has the kernel forget connections of pods that have gone.
    pub(super) fn clear(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        if self.index.synced() {
            let own = self.index.own_node().into_iter().flat_map(|node| node.pod_cidrs.values().copied());
            let own: Vec<IpNet> = own.collect();
            self.pods.clear(now, &own, effects);
        }
    }

    pub(super) fn cleared(&mut self, now: Instant, cleared: &Cleared, effects: &mut Vec<Effect>) {
        self.pods.cleared(now, cleared);
        if self.rules_in_force() && self.overlay_outcome == Outcome::Done {
            self.pods.answer(now, effects);
        }
    }
}

fn say(cuts: &Cuts) {
    let took_ms = cuts.took.as_millis();
    if cuts.cut > 0 {
        let examples = cuts.examples.join("; ");
        info!(cut = cuts.cut, took_ms, examples, "connections were cut that policies deny now");
    }
    if cuts.restored > 0 {
        info!(restored = cuts.restored, took_ms, "connections may go on that policies allow again");
    }
}
