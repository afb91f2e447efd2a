//! The pods of this node: those that run, and those whose start waits for their rules.

mod quarantine;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use towpath_core::{
    model::Family,
    names::IfName,
    overlay::{NetOp, NextHop},
};
use towpath_index::{Dirty, DirtyPart, Index};

use self::quarantine::AddressQuarantine;
pub use self::quarantine::{AddressSet, FlushRequest, FlushedAddresses, Urgency};
use crate::{
    effect::{CniCode, CniReply, Effect, Measurement},
    input::{Attachment, LocalPod, Ticket},
    log::{FailedStep, LogLine},
};

/// How long the start of a pod waits. The plugin gives up after ten seconds, and gets our reason before.
const START_TIMEOUT: Duration = Duration::from_secs(8);

/// The start of a pod that waits.
#[derive(Debug)]
struct Waiting {
    attachment: Attachment,
    ticket: Ticket,
    since: Instant,
    stage: StartStage,
}

/// What the start of a pod waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StartStage {
    /// The pod watch, or the next plan.
    NotPlanned,
    /// The last plan has the pod's rules: the commit, and the flush of its addresses.
    Planned,
}

/// Whether the endpoint files are being read.
#[derive(Debug, Default)]
enum FileRead {
    #[default]
    Idle,
    /// With the pods that were added or deleted since: of those the reading is out of date.
    Reading { changed: BTreeSet<Attachment> },
}

/// The pods.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    pods: BTreeMap<Attachment, LocalPod>,
    waiting: Vec<Waiting>,
    file_read: FileRead,
    /// Interfaces that existed at the last read-back.
    seen: BTreeSet<IfName>,
    /// Those that existed at the one before, too: the plugin has made their routes.
    settled: BTreeSet<IfName>,
    quarantine: AddressQuarantine,
}

impl Pods {
    /// The pods that started before the agent.
    pub(crate) fn new(pods: Vec<LocalPod>, index: &mut Index) -> Self {
        let mut this = Self::default();
        for pod in pods {
            // The first plan has them in any case.
            let _ = this.insert(pod, index);
        }
        this
    }

    fn insert(&mut self, pod: LocalPod, index: &mut Index) -> Dirty {
        let dirty = index.set_local_endpoint(pod.endpoint.clone());
        self.pods.insert(pod.attachment.clone(), pod);
        dirty
    }

    /// ADD: the pod has its interface, and waits for its rules.
    pub(crate) fn add(
        &mut self,
        now: Instant,
        ticket: Ticket,
        pod: LocalPod,
        index: &mut Index,
        effects: &mut Vec<Effect>,
    ) -> Dirty {
        let (attachment, addresses) = (pod.attachment.clone(), pod.endpoint.addresses.clone());
        self.changed(&attachment);
        // The plugin gives out no address in use: a pod that has it here is deleted, and its DEL is still to come.
        for other in self.pods.values().filter(|other| other.attachment != attachment) {
            for address in other.endpoint.addresses.iter().filter(|address| addresses.contains(address)) {
                self.quarantine.drain(*address);
            }
        }
        effects.extend(self.quarantine.flush_awaited(now, &addresses).map(Effect::Flush));
        let mut dirty = self.insert(pod, index);
        // A repeated ADD, as after our restart, finds its rules in force: the plan has to confirm it.
        dirty.merge(Dirty::only(DirtyPart::Policy));
        self.waiting.push(Waiting { attachment, ticket, since: now, stage: StartStage::NotPlanned });
        dirty
    }

    /// DEL: the pod's interface is deleted.
    pub(crate) fn delete(&mut self, attachment: &Attachment, index: &mut Index) -> Dirty {
        self.changed(attachment);
        self.remove(attachment, index)
    }

    fn changed(&mut self, attachment: &Attachment) {
        if let FileRead::Reading { changed } = &mut self.file_read {
            changed.insert(attachment.clone());
        }
    }

    fn remove(&mut self, attachment: &Attachment, index: &mut Index) -> Dirty {
        let Some(LocalPod { endpoint, .. }) = self.pods.remove(attachment) else { return Dirty::nothing() };
        let in_use = |address: &&IpAddr| self.pods.values().any(|other| other.endpoint.addresses.contains(address));
        for address in endpoint.addresses.iter().filter(|address| !in_use(address)) {
            self.quarantine.drain(*address);
        }
        // The pod's next container has the same interface, and may be added before the last one is deleted.
        match self.pods.values().find(|other| other.endpoint.interface == endpoint.interface) {
            Some(successor) => index.set_local_endpoint(successor.endpoint.clone()),
            None => index.remove_local_endpoint(&endpoint.interface),
        }
    }

    /// The endpoint files are about to be read.
    pub(crate) fn begin_read(&mut self) {
        self.file_read = FileRead::Reading { changed: BTreeSet::new() };
    }

    /// The endpoint files could not be read.
    pub(crate) fn read_failed(&mut self) {
        self.file_read = FileRead::Idle;
    }

    /// The endpoint files were read: pods that were added or deleted without a request are taken over.
    pub(crate) fn reconcile(&mut self, read: Vec<LocalPod>, index: &mut Index, effects: &mut Vec<Effect>) -> Dirty {
        let mut dirty = Dirty::nothing();
        let changed = match std::mem::take(&mut self.file_read) {
            FileRead::Idle => BTreeSet::new(),
            FileRead::Reading { changed } => changed,
        };
        let read: BTreeMap<Attachment, LocalPod> = read.into_iter().map(|pod| (pod.attachment.clone(), pod)).collect();
        let is_gone = |attachment: &&Attachment| !read.contains_key(*attachment) && !changed.contains(*attachment);
        let gone: Vec<Attachment> = self.pods.keys().filter(is_gone).cloned().collect();
        for attachment in gone {
            dirty.merge(self.remove(&attachment, index));
            effects.push(Effect::Log(LogLine::PodVanished { attachment }));
        }
        for (attachment, pod) in read {
            if !self.pods.contains_key(&attachment) && !changed.contains(&attachment) {
                dirty.merge(self.insert(pod, index));
            }
        }
        let now = self.pods.values().map(|pod| pod.endpoint.interface.clone()).collect();
        self.settled = std::mem::replace(&mut self.seen, now);
        dirty
    }

    /// A plan was made from this index.
    pub(crate) fn planned(&mut self, index: &Index) {
        self.quarantine.planned();
        for waiting in &mut self.waiting {
            let is_planned = self.pods.get(&waiting.attachment).is_some_and(|pod| is_known(pod, index));
            waiting.stage = if is_planned { StartStage::Planned } else { StartStage::NotPlanned };
        }
    }

    /// The last plan is in force: its pods start if their addresses are released.
    pub(crate) fn in_force(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        effects.extend(self.quarantine.flush_drained().map(Effect::Flush));
        let (pods, quarantine) = (&self.pods, &self.quarantine);
        let is_released = |attachment: &Attachment| {
            pods.get(attachment).is_some_and(|pod| quarantine.are_released(&pod.endpoint.addresses))
        };
        let may_start =
            |waiting: &mut Waiting| waiting.stage == StartStage::Planned && is_released(&waiting.attachment);
        for waiting in self.waiting.extract_if(.., may_start) {
            let wait = now.saturating_duration_since(waiting.since);
            effects.push(Effect::Measure(Measurement::PodWait(wait)));
            effects.push(Effect::Reply(waiting.ticket, CniReply::Ok));
        }
    }

    /// The last plan was rejected: its pods must not start.
    pub(crate) fn rejected(&mut self, error: &str, effects: &mut Vec<Effect>) {
        for waiting in self.waiting.extract_if(.., |waiting| waiting.stage == StartStage::Planned) {
            let message = "the kernel rejected the pod's policy rules";
            effects.push(Effect::Reply(waiting.ticket, try_again(message, error)));
        }
    }

    /// Addresses were flushed, or not.
    pub(crate) fn flushed(&mut self, now: Instant, flushed: &FlushedAddresses, effects: &mut Vec<Effect>) {
        if let Err(error) = &flushed.result {
            let retry_in = quarantine::RETRY;
            let (step, error) = (FailedStep::Flush, error.clone());
            effects.push(Effect::Log(LogLine::Failed { step, error, retry_in, first: true }));
        }
        self.quarantine.flushed(now, flushed);
    }

    /// Flushes what is due: after the start all addresses that no running pod has, later those that a pod waits for. `own`
    /// are the networks of this node's pods.
    pub(crate) fn flush(&mut self, now: Instant, own: &[IpNet], effects: &mut Vec<Effect>) {
        let is_waiting = |attachment: &Attachment| self.waiting.iter().any(|waiting| waiting.attachment == *attachment);
        let running = self.pods.values().filter(|pod| !is_waiting(&pod.attachment));
        let in_use: BTreeSet<IpAddr> = running.flat_map(|pod| pod.endpoint.addresses.iter().copied()).collect();
        effects.extend(self.quarantine.flush_initial(now, own, in_use).map(Effect::Flush));
        let awaited: Vec<IpAddr> = self.awaited().copied().collect();
        effects.extend(self.quarantine.flush_awaited(now, &awaited).map(Effect::Flush));
    }

    /// The addresses of waiting pods.
    fn awaited(&self) -> impl Iterator<Item = &IpAddr> {
        let pods = self.waiting.iter().filter_map(|waiting| self.pods.get(&waiting.attachment));
        pods.flat_map(|pod| &pod.endpoint.addresses)
    }

    /// Fails the starts that have waited too long, and removes their pods: the plugin undoes what it has made.
    pub(crate) fn expire(&mut self, now: Instant, index: &mut Index, effects: &mut Vec<Effect>) -> Dirty {
        let mut dirty = Dirty::nothing();
        let late: Vec<Waiting> = self.waiting.extract_if(.., |waiting| waiting.since + START_TIMEOUT <= now).collect();
        for Waiting { attachment, ticket, .. } in late {
            let pod = self.pods.get(&attachment);
            let known = pod.is_some_and(|pod| is_known(pod, index));
            let released = pod.is_none_or(|pod| self.quarantine.are_released(&pod.endpoint.addresses));
            let reason = match (index.synced(), known, released) {
                (false, ..) => "the agent has not listed the API server's objects since it started",
                (true, false, _) => "the agent has not received the pod from the API server",
                (true, true, true) => "the kernel has not committed the pod's policy rules",
                (true, true, false) => "the conntrack entries of the address's previous pod are not flushed",
            };
            dirty.merge(self.remove(&attachment, index));
            effects.push(Effect::Reply(ticket, try_again("the pod's policy rules are not in force yet", reason)));
            effects.push(Effect::Log(LogLine::PodTimedOut { attachment, reason }));
        }
        dirty
    }

    /// When [`Pods::expire`] or [`Pods::flush`] is due.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let retry_at = self.quarantine.retry_at(self.awaited());
        self.waiting.iter().map(|waiting| waiting.since + START_TIMEOUT).chain(retry_at).min()
    }

    /// Whether a change repairs drift: the route of a pod whose start is under way is the plugin's to make.
    pub(crate) fn is_repair(&self, op: &NetOp) -> bool {
        if let NetOp::AddRoute { hop: NextHop::Link(link), .. } = op {
            !link.is_pod() || self.settled.contains(link)
        } else {
            true
        }
    }

    /// The number of addresses in use, of this family.
    pub(crate) fn addresses(&self, family: Family) -> usize {
        let addresses = self.pods.values().flat_map(|pod| &pod.endpoint.addresses);
        addresses.filter(|address| Family::of(**address) == family).count()
    }
}

fn try_again(message: &'static str, details: &str) -> CniReply {
    CniReply::Error { code: CniCode::TryAgainLater, message, details: details.to_owned() }
}

/// Whether the API server has delivered this very pod, so that its labels are its own.
fn is_known(pod: &LocalPod, index: &Index) -> bool {
    index.pod_known(&pod.endpoint.pod, pod.uid.as_deref())
}
