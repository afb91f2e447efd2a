//! The pods of this node: those that have their interface, and those whose start waits for their rules.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use tokio::sync::oneshot;
use towpath_core::{
    model::Family,
    names::IfName,
    overlay::{NetOp, NextHop},
};
use towpath_index::{Dirty, Index};
use towpath_local::{Attachment, EndpointFile, Reply};
use tracing::{info, warn};

use super::{Effect, vacancy::Vacancy};
use crate::connections::{Cleared, Urgency};

/// How long a pod's start waits. The plugin gives up after ten seconds and hears our reason before.
const PATIENCE: Duration = Duration::from_secs(8);
/// CNI's error code for "try again later".
const TRY_AGAIN: u32 = 11;

/// A pod's start that waits.
#[derive(Debug)]
struct Waiting {
    attachment: Attachment,
    since: Instant,
    reply: oneshot::Sender<Reply>,
    /// Whether the latest plan has the pod's rules.
    planned: bool,
}

/// The pods.
#[derive(Debug, Default)]
pub(super) struct Pods {
    attachments: BTreeMap<Attachment, EndpointFile>,
    waiting: Vec<Waiting>,
    /// Those that were there at the last read-back, and at the one before it: their routes are made, not in the making.
    seen: BTreeSet<IfName>,
    settled: BTreeSet<IfName>,
    /// Addresses of pods that have gone, and whose rules are still in force.
    left: BTreeSet<IpAddr>,
    /// The same, but the plan that is being put in force does not have them any more.
    leaving: BTreeSet<IpAddr>,
    /// What changed while the files are being read: the reading knows less than we do.
    changed_since_reading: BTreeSet<Attachment>,
    vacancy: Vacancy,
}

impl Pods {
    /// Pods that were there before us.
    pub(super) fn found(&mut self, files: Vec<EndpointFile>, index: &mut Index) {
        for file in files {
            if let Ok(attachment) = file.attachment() {
                let _ = index.set_local_endpoint(file.endpoint());
                self.attachments.insert(attachment, file);
            }
        }
    }

    /// A pod has got its interface and wants its rules.
    pub(super) fn add(
        &mut self,
        now: Instant,
        file: EndpointFile,
        reply: oneshot::Sender<Reply>,
        index: &mut Index,
        effects: &mut Vec<Effect>,
    ) -> Dirty {
        let attachment = match file.attachment() {
            Ok(attachment) => attachment,
            Err(error) => {
                effects
                    .push(Effect::Reply(reply, Reply::error(4, "the container id cannot be used", &error.to_string())));
                return Dirty::nothing();
            }
        };
        let mut dirty = index.set_local_endpoint(file.endpoint());
        // Asked again, as after our restart: the rules may stand already, so the plan is to say so.
        dirty.merge(Dirty::only(towpath_index::DirtyPart::Policy));
        self.changed_since_reading.insert(attachment.clone());
        // The plugin gives nobody an address that somebody has: whoever had it is gone, and we have not been told yet.
        for other in self.attachments.iter().filter(|(other, _)| **other != attachment).map(|(_, other)| other) {
            for address in other.addresses.iter().filter(|address| file.addresses.contains(address)) {
                self.vacancy.left(*address);
            }
        }
        effects.extend(self.vacancy.clear(now, &file.addresses, Urgency::AtOnce).map(Effect::Clear));
        self.attachments.insert(attachment.clone(), file);
        self.waiting.push(Waiting { attachment, since: now, reply, planned: false });
        dirty
    }

    /// A pod's interface is gone.
    pub(super) fn remove(&mut self, container_id: &str, ifname: &str, index: &mut Index) -> Dirty {
        let Ok(attachment) = Attachment::new(container_id, ifname) else { return Dirty::nothing() };
        self.changed_since_reading.insert(attachment.clone());
        self.forget(&attachment, index)
    }

    fn forget(&mut self, attachment: &Attachment, index: &mut Index) -> Dirty {
        let Some(file) = self.attachments.remove(attachment) else { return Dirty::nothing() };
        let in_use = |address: &&IpAddr| self.attachments.values().any(|other| other.addresses.contains(address));
        for address in file.addresses.iter().filter(|address| !in_use(address)) {
            self.vacancy.left(*address);
        }
        self.left.extend(&file.addresses);
        // The pod's next container has the same interface, and may be there before the last one is taken away.
        let heir = self.attachments.values().find(|other| other.host_interface == file.host_interface);
        match heir {
            Some(heir) => index.set_local_endpoint(heir.endpoint()),
            None => index.remove_local_endpoint(&file.host_interface),
        }
    }

    /// The files are about to be read.
    pub(super) fn reading(&mut self) {
        self.changed_since_reading.clear();
    }

    /// Takes in the files as they were read: pods that were deleted while nobody listened go.
    pub(super) fn reconcile(&mut self, files: Vec<EndpointFile>, index: &mut Index) -> Dirty {
        let mut dirty = Dirty::nothing();
        let read: BTreeMap<Attachment, EndpointFile> =
            files.into_iter().filter_map(|file| Some((file.attachment().ok()?, file))).collect();
        let news = |a: &&Attachment| !self.changed_since_reading.contains(*a);
        let gone: Vec<Attachment> =
            self.attachments.keys().filter(|a| !read.contains_key(*a)).filter(news).cloned().collect();
        let come: Vec<Attachment> =
            read.keys().filter(|a| !self.attachments.contains_key(*a)).filter(news).cloned().collect();
        for attachment in gone {
            info!(pod = %attachment, "pod went without telling; its rules go");
            dirty.merge(self.forget(&attachment, index));
        }
        for (attachment, file) in read.into_iter().filter(|(a, _)| come.contains(a)) {
            dirty.merge(index.set_local_endpoint(file.endpoint()));
            self.attachments.insert(attachment, file);
        }
        let now = self.attachments.values().map(|file| file.host_interface.clone()).collect();
        self.settled = std::mem::replace(&mut self.seen, now);
        dirty
    }

    /// A plan was made from this index.
    pub(super) fn planned(&mut self, index: &Index) {
        self.leaving.append(&mut self.left);
        for waiting in &mut self.waiting {
            let file = self.attachments.get(&waiting.attachment);
            waiting.planned = file.is_some_and(|file| is_known(file, index));
        }
    }

    /// The plan is in force: those in it may start.
    pub(super) fn answer(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        // Of an address that somebody else has got meanwhile nothing is remembered any more: that was cleared before.
        effects.extend(self.vacancy.clear(now, &self.leaving, Urgency::Soon).map(Effect::Clear));
        self.leaving.clear();
        let (attachments, vacancy) = (&self.attachments, &self.vacancy);
        let is_clean = |a: &Attachment| attachments.get(a).is_some_and(|file| vacancy.are_clean(&file.addresses));
        let may_start = |waiting: &mut Waiting| waiting.planned && is_clean(&waiting.attachment);
        for waiting in self.waiting.extract_if(.., may_start) {
            effects.push(Effect::Waited(now.saturating_duration_since(waiting.since)));
            effects.push(Effect::Reply(waiting.reply, Reply::Ok));
        }
    }

    /// Addresses have been cleared, or not.
    pub(super) fn cleared(&mut self, now: Instant, cleared: &Cleared) {
        if let Err(error) = &cleared.result {
            warn!(
                error = error as &dyn Error,
                "connections of addresses not cleared; tried again before a pod gets one"
            );
        }
        self.vacancy.cleared(now, &cleared.addresses, cleared.result.is_ok());
    }

    /// Has cleared what has to be by now: at the start all that no pod has that runs, and what waiting pods wait for.
    /// `own` are the networks of this node's pods.
    pub(super) fn clear(&mut self, now: Instant, own: &[IpNet], effects: &mut Vec<Effect>) {
        let is_waiting = |attachment: &Attachment| self.waiting.iter().any(|waiting| waiting.attachment == *attachment);
        let running = self.attachments.iter().filter(|(attachment, _)| !is_waiting(attachment));
        let taken = running.flat_map(|(_, file)| file.addresses.iter().copied()).collect();
        effects.extend(self.vacancy.sweep(now, own, taken).map(Effect::Clear));
        let awaited: Vec<IpAddr> = self.awaited().copied().collect();
        effects.extend(self.vacancy.clear(now, &awaited, Urgency::AtOnce).map(Effect::Clear));
    }

    /// Addresses of pods that wait.
    fn awaited(&self) -> impl Iterator<Item = &IpAddr> {
        self.waiting
            .iter()
            .filter_map(|waiting| self.attachments.get(&waiting.attachment))
            .flat_map(|file| &file.addresses)
    }

    /// The plan was refused: those in it must not start.
    pub(super) fn refuse(&mut self, why: &str, effects: &mut Vec<Effect>) {
        for waiting in self.waiting.extract_if(.., |waiting| waiting.planned) {
            let reply = Reply::error(TRY_AGAIN, "the pod's rules could not be put in force", why);
            effects.push(Effect::Reply(waiting.reply, reply));
        }
    }

    /// Sends away those that have waited too long. Their endpoints go: the plugin undoes what it has made.
    pub(super) fn expire(&mut self, now: Instant, index: &mut Index, effects: &mut Vec<Effect>) -> Dirty {
        let mut dirty = Dirty::nothing();
        let late: Vec<Waiting> = self.waiting.extract_if(.., |waiting| waiting.since + PATIENCE <= now).collect();
        for Waiting { attachment, reply, .. } in late {
            let known = self.attachments.get(&attachment).is_some_and(|file| is_known(file, index));
            let clean = self.attachments.get(&attachment).is_none_or(|file| self.vacancy.are_clean(&file.addresses));
            let why = match (index.synced(), known, clean) {
                (false, ..) => "the agent has not heard from the API server since it started",
                (true, false, _) => "the agent has not heard of the pod from the API server",
                (true, true, true) => "the kernel is slow to take the pod's rules",
                (true, true, false) => "the kernel does not forget the connections that the pod's address had before",
            };
            warn!(pod = %attachment, why, "pod's start put off");
            dirty.merge(self.forget(&attachment, index));
            effects.push(Effect::Reply(reply, Reply::error(TRY_AGAIN, "the pod's rules are not in force yet", why)));
        }
        dirty
    }

    /// When [`Pods::expire`] or [`Pods::clear`] has something to do.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let again = self.vacancy.again(self.awaited());
        self.waiting.iter().map(|waiting| waiting.since + PATIENCE).chain(again).min()
    }

    /// Whether a change repairs something: a route to a pod that is just being made does not.
    pub(super) fn is_settled(&self, op: &NetOp) -> bool {
        match op {
            NetOp::AddRoute { hop: NextHop::Link(link), .. } => !link.is_pod() || self.settled.contains(link),
            _ => true,
        }
    }

    /// Addresses in use, of this family.
    pub(super) fn addresses(&self, family: Family) -> usize {
        self.attachments.values().flat_map(|file| &file.addresses).filter(|a| Family::of(**a) == family).count()
    }
}

/// Whether the API server has told of this very pod, so that its labels are its own.
fn is_known(file: &EndpointFile, index: &Index) -> bool {
    index.pod_known(&file.pod_id(), file.pod_uid.as_deref())
}
