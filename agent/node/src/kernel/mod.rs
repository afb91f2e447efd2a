//! The kernel view: what is wanted, what the kernel has, and the change from one to the other.
//!
//! Expected flow: read both parts back → plan → apply; then plan again after each change of the cluster, and read back after
//! a notification of the kernel, a failure, or the resync deadline. One kernel job at a time: what a change is computed from
//! is what the kernel has when it is applied.

mod state;

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use towpath_core::{
    connection::AffectedPods,
    model::{Family, Mac, NodePeer},
    overlay::{self, Kernel, NetOp},
    ruleset::Installed,
};
use towpath_index::{Dirty, DirtyPart, Index};

use self::state::{Applying, Cached, DirtyCause, Freshness, NetworkState, Progress, TableContent, TableState, Work};
use crate::{
    back_off::BackOff,
    effect::{Effect, KernelChange, KernelPart},
    input::{ApplyResult, KernelNotification},
    log::FailedStep,
    node::Identity,
    plan::{OverlayPlan, Plan, PlanInput, Planner},
    settings::Settings,
};

/// How long notifications are gathered before the network is read back.
pub(crate) const GATHER: Duration = Duration::from_millis(100);
/// Time between two read-backs without any notification, plus or minus a fifth.
const RESYNC: Duration = Duration::from_secs(300);

/// The plan, the cached state of both parts of the kernel, and the kernel job under way.
#[derive(Debug)]
pub(crate) struct KernelView {
    planner: Planner,
    plan: Option<Plan>,
    freshness: Freshness,
    network: Cached<NetworkState>,
    table: Cached<TableState>,
    work: Work,
    back_off: BackOff,
    resync: Duration,
}

/// A new plan's difference to the kernel.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) change: KernelChange,
    /// Whether the change only repairs what another process did.
    pub(crate) is_drift: bool,
    policy_since: Option<Instant>,
}

/// How a change ended.
#[derive(Debug)]
pub(crate) enum Applied {
    /// The table's transaction was rejected: nothing was changed.
    Rejected { error: String },
    /// The table's transaction was committed.
    Committed {
        /// The pods whose established connections the change may deny or allow again.
        affected: AffectedPods,
        /// When the first change arrived that concerns policy and is in force now.
        policy_since: Option<Instant>,
        /// Whether the network is as planned, too.
        complete: bool,
    },
}

/// Why a part is not as planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortfall<'a> {
    Untried,
    Failed(&'a str),
}

impl KernelView {
    /// A view of a kernel that was never read.
    pub(crate) fn new(settings: &Settings, identity: &Identity, now: Instant) -> Self {
        Self {
            planner: Planner::new(settings, &identity.me),
            plan: None,
            freshness: Freshness::Dirty { cause: DirtyCause::Wanted, policy_since: None },
            network: Cached { state: NetworkState::Unread, resync_at: now },
            table: Cached { state: TableState::Unread, resync_at: now },
            work: Work::Idle,
            back_off: BackOff::default(),
            resync: RESYNC * (800 + identity.jitter * 2 / 5) / 1000,
        }
    }

    /// The cluster changed: marks the plan dirty.
    pub(crate) fn mark(&mut self, now: Instant, dirty: &Dirty, synced: bool) {
        if dirty.is_empty() {
            return;
        }
        let since = (dirty.contains(DirtyPart::Policy) && synced).then_some(now);
        self.replan(since);
    }

    fn replan(&mut self, since: Option<Instant>) {
        let policy_since = match self.freshness {
            Freshness::Current => since,
            Freshness::Dirty { policy_since, .. } => policy_since.or(since),
        };
        self.freshness = Freshness::Dirty { cause: DirtyCause::Wanted, policy_since };
    }

    /// A read-back differs from the cached state. If the cluster has changed as well, the two cannot be told apart.
    fn read_back_differs(&mut self, cause: DirtyCause) {
        if self.freshness == Freshness::Current {
            self.freshness = Freshness::Dirty { cause, policy_since: None };
        }
    }

    /// The kernel notified of a change: our own, or another process's.
    pub(crate) fn notified(&mut self, now: Instant, notification: &KernelNotification) {
        match notification {
            KernelNotification::Network(changes) => {
                if changes.iter().any(|change| !self.is_expected(change)) {
                    self.network.resync_by(now + GATHER);
                }
            }
            KernelNotification::Table => self.table.resync_by(now),
        }
    }

    /// Whether the change is one that the plan asks for.
    fn is_expected(&self, change: &overlay::NetNotification) -> bool {
        match (self.overlay(), self.have()) {
            (Some(want), Some(have)) => want.overlay.expects(change, have),
            (None, _) | (_, None) => false,
        }
    }

    /// Begins the read-back that is due.
    pub(crate) fn begin_read(&mut self, now: Instant) -> Option<KernelPart> {
        let due = [(self.table.is_due(now), KernelPart::Table), (self.network.is_due(now), KernelPart::Network)];
        let (_, part) = due.into_iter().find(|(due, _)| *due)?;
        self.work = Work::Reading;
        Some(part)
    }

    /// The network was read back.
    pub(crate) fn network_read(&mut self, now: Instant, kernel: Box<Kernel>) {
        self.work = Work::Idle;
        let (differs, mut progress) = match std::mem::replace(&mut self.network.state, NetworkState::Unread) {
            NetworkState::Unread => (true, Progress::Untried),
            NetworkState::Read { have, progress } => (have != kernel, progress),
        };
        match &mut progress {
            Progress::Applied(applied) if differs => {
                *applied = None;
                self.read_back_differs(DirtyCause::Drift);
            }
            Progress::Applied(_) => {}
            Progress::Untried if !differs => {}
            Progress::Untried | Progress::Failed(_) => self.read_back_differs(DirtyCause::Wanted),
        }
        let state = NetworkState::Read { have: kernel, progress };
        self.network = Cached { state, resync_at: now + self.resync };
    }

    /// Our table was read back.
    pub(crate) fn table_read(&mut self, now: Instant, read: Option<Installed>) {
        self.work = Work::Idle;
        let content = self.table.state.content();
        // The same content stays shared with the plan.
        if !content.is_some_and(|have| have.equals(read.as_ref())) {
            let cause = if content.is_some() { DirtyCause::Drift } else { DirtyCause::Wanted };
            self.read_back_differs(cause);
            self.table.state.replace_content(read);
        }
        self.table.resync_at = now + self.resync;
    }

    /// A part could not be read back.
    pub(crate) fn read_failed(&mut self, now: Instant, part: KernelPart, error: &str, effects: &mut Vec<Effect>) {
        self.work = Work::Idle;
        let at = now + self.back_off.failed(FailedStep::ReadBack, error, effects);
        match part {
            KernelPart::Network => self.network.resync_at = at,
            KernelPart::Table => self.table.resync_at = at,
        }
    }

    /// Plans if the plan is dirty and both parts are known.
    pub(crate) fn plan(&mut self, settings: &Settings, identity: &Identity, index: &Index) -> Option<Planned> {
        let Freshness::Dirty { cause, policy_since } = self.freshness else { return None };
        let NetworkState::Read { have, progress } = &self.network.state else { return None };
        self.table.state.content()?;
        let plan = self.planner.plan(PlanInput { settings, me: &identity.me, index, have, macs: &identity.macs })?;
        let table = self.table.state.diff(&plan.table)?;
        let network = match (&plan.overlay, progress) {
            (Some(want), Progress::Applied(Some(applied))) => overlay::change(&want.overlay, applied, have),
            (Some(want), Progress::Applied(None) | Progress::Untried | Progress::Failed(_)) => {
                overlay::diff(&want.overlay, have)
            }
            (None, _) => Vec::new(),
        };
        self.freshness = Freshness::Current;
        self.plan = Some(plan);
        let policy_since = policy_since.filter(|_| !table.is_empty());
        let change = KernelChange { table, network };
        Some(Planned { change, is_drift: cause == DirtyCause::Drift, policy_since })
    }

    /// Begins to apply a change.
    pub(crate) fn begin_apply(&mut self, planned: Planned, affected: AffectedPods) -> KernelChange {
        let Planned { change, policy_since, .. } = planned;
        self.work = Work::Applying(Applying { ops: change.network.clone(), affected, policy_since });
        change
    }

    /// The kernel is as planned without a change.
    pub(crate) fn in_sync(&mut self, now: Instant) {
        self.table.state = match std::mem::replace(&mut self.table.state, TableState::Unread) {
            TableState::Read(content) | TableState::InForce(content) => TableState::InForce(content),
            // After a rejection the table is replaced, which is never an empty change.
            state @ (TableState::Unread | TableState::Rejected { .. }) => state,
        };
        self.follow(now, &[]);
        self.back_off.succeeded();
    }

    /// A change was committed or rejected; `None` if none was under way.
    pub(crate) fn applied(&mut self, now: Instant, result: ApplyResult, effects: &mut Vec<Effect>) -> Option<Applied> {
        let Work::Applying(applying) = std::mem::replace(&mut self.work, Work::Idle) else { return None };
        let Applying { ops, affected, policy_since } = applying;
        if let Err(error) = result.table {
            self.table.resync_at = now + self.back_off.failed(FailedStep::Apply, &error, effects);
            self.table.state = TableState::Rejected { error: error.clone(), content: None };
            // What was applied to the network before still is there.
            self.replan(None);
            if let Freshness::Dirty { policy_since: since, .. } = &mut self.freshness {
                *since = policy_since.or(*since);
            }
            return Some(Applied::Rejected { error });
        }
        if let Some(plan) = &self.plan {
            self.table.state = TableState::InForce(TableContent::Committed(plan.table.clone()));
        }
        let complete = result.network.is_ok();
        match result.network {
            Ok(()) => {
                self.follow(now, &ops);
                self.back_off.succeeded();
            }
            Err(failed) => {
                let pause = self.back_off.failed(FailedStep::Apply, &failed.first, effects);
                self.network.resync_by(now + pause);
                let text = format!("{} of {} changes failed, the first: {}", failed.count, ops.len(), failed.first);
                self.set_progress(Progress::Failed(text));
            }
        }
        Some(Applied::Committed { affected, policy_since, complete })
    }

    /// Applies to the cached state what was applied to the kernel, so that one more peer costs one more peer. A new device
    /// has an ifindex that only the kernel knows: then the network is read back.
    fn follow(&mut self, now: Instant, ops: &[NetOp]) {
        let changes_links = |op: &NetOp| matches!(op, NetOp::CreateDevice(_) | NetOp::DeleteLink { .. });
        let NetworkState::Read { have, progress } = &mut self.network.state else { return };
        let want = self.plan.as_ref().and_then(|plan| plan.overlay.as_ref());
        let followed = ops.iter().all(|op| !changes_links(op) && have.execute(op).is_ok());
        let applied = match (followed, want, &mut *progress) {
            (true, Some(want), _) => Some(want.overlay.clone()),
            (true, None, Progress::Applied(applied)) => applied.take(),
            (true, None, Progress::Untried | Progress::Failed(_)) => None,
            (false, ..) => None,
        };
        *progress = Progress::Applied(applied);
        if !followed {
            self.network.resync_by(now);
        }
    }

    fn set_progress(&mut self, new: Progress) {
        if let NetworkState::Read { progress, .. } = &mut self.network.state {
            *progress = new;
        }
    }

    /// When a read-back is due; `None` while the kernel thread works.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.is_idle().then(|| self.network.resync_at.min(self.table.resync_at))
    }

    /// Whether the kernel thread has nothing to do.
    pub(crate) const fn is_idle(&self) -> bool {
        matches!(self.work, Work::Idle)
    }

    /// Whether the kernel has the rules of the last plan.
    pub(crate) const fn rules_in_force(&self) -> bool {
        self.plan.is_some()
            && matches!(self.table.state, TableState::InForce(_))
            && !matches!(self.work, Work::Applying(_))
    }

    /// Whether the kernel has the rules and the network of the last plan.
    pub(crate) fn in_force(&self) -> bool {
        self.rules_in_force() && self.network_shortfall().is_none()
    }

    /// The last plan, in force or on its way.
    pub(crate) const fn wanted(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// The overlay of the last plan.
    pub(crate) fn overlay(&self) -> Option<&OverlayPlan> {
        self.plan.as_ref()?.overlay.as_ref()
    }

    /// The network as it was read back last, with what was applied since.
    pub(crate) const fn have(&self) -> Option<&Kernel> {
        match &self.network.state {
            NetworkState::Unread => None,
            NetworkState::Read { have, .. } => Some(&**have),
        }
    }

    /// The planner, with its policy compiler.
    pub(crate) const fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Why the table is not as planned.
    pub(crate) fn table_shortfall(&self) -> Option<Shortfall<'_>> {
        match &self.table.state {
            TableState::Unread | TableState::Read(_) => Some(Shortfall::Untried),
            TableState::InForce(_) => None,
            TableState::Rejected { error, .. } => Some(Shortfall::Failed(error)),
        }
    }

    /// Why the network is not as planned.
    pub(crate) fn network_shortfall(&self) -> Option<Shortfall<'_>> {
        match &self.network.state {
            NetworkState::Unread | NetworkState::Read { progress: Progress::Untried, .. } => Some(Shortfall::Untried),
            NetworkState::Read { progress: Progress::Applied(_), .. } => None,
            NetworkState::Read { progress: Progress::Failed(error), .. } => Some(Shortfall::Failed(error)),
        }
    }

    /// Whether pods reach other nodes, apart from peers that are skipped for their own faults.
    pub(crate) fn overlay_is_up(&self) -> bool {
        let complete = |plan: &Plan| plan.overlay.is_some() && plan.problem.is_none();
        self.network_shortfall().is_none() && self.plan.as_ref().is_some_and(complete)
    }

    /// Wanted peers of all families.
    pub(crate) fn peers(&self) -> usize {
        self.plan.as_ref().map_or(0, |plan| plan.peers.families.values().map(|family| family.peers.len()).sum())
    }

    /// Peers of a family of which the kernel has neighbour, FDB entry and route as planned.
    pub(crate) fn programmed_peers(&self, family: Family) -> usize {
        let view = self.plan.as_ref().and_then(|plan| plan.peers.families.get(&family));
        let (Some(view), Some(want), Some(have)) = (view, self.overlay(), self.have()) else { return 0 };
        if self.network_shortfall().is_none() {
            return view.peers.len();
        }
        let missing = overlay::diff(&want.overlay, have);
        let gateway = |op: &NetOp| match op {
            NetOp::SetNeighbour { address, .. } => Some(*address),
            NetOp::AddRoute { destination, .. } | NetOp::ReplaceRoute { destination, .. } => {
                Some(destination.network())
            }
            NetOp::DeleteLink { .. }
            | NetOp::CreateDevice(_)
            | NetOp::SetMtu { .. }
            | NetOp::SetMac { .. }
            | NetOp::SetUp { .. }
            | NetOp::SetSysctl { .. }
            | NetOp::AddAddress { .. }
            | NetOp::SetFdb { .. }
            | NetOp::DeleteRoute { .. }
            | NetOp::DeleteFdb { .. }
            | NetOp::DeleteNeighbour { .. }
            | NetOp::DeleteAddress { .. } => None,
        };
        let gateways: BTreeSet<IpAddr> = missing.iter().filter_map(gateway).collect();
        let mac = |op: &NetOp| if let NetOp::SetFdb { mac, .. } = op { Some(*mac) } else { None };
        let macs: BTreeSet<Mac> = missing.iter().filter_map(mac).collect();
        let is_programmed =
            |peer: &&NodePeer| !gateways.contains(&peer.pod_cidr.network()) && !macs.contains(&peer.vtep_mac);
        view.peers.values().filter(is_programmed).count()
    }
}
