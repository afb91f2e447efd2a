//! The sets that chains refer to. Elements are added and removed as pods change; sets are created and deleted with the
//! chains that use them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use imbl::OrdMap;

use super::{
    pod_index::{PodIndex, PodView},
    selector_index::SelectorIndex,
    set::{MemberSource, SetContents, SetExpr, SetMember},
};
use crate::{
    model::Family,
    names::{Comment, SetName},
    ruleset::{Element, Set, Value},
};

/// The sets in use, and the member sources that contribute their elements.
#[derive(Debug, Default)]
pub(super) struct Sets {
    sets: OrdMap<SetName, Set>,
    comments: OrdMap<SetName, Comment>,
    /// For each set: how many chains use it, and the numbers of its sources.
    users: BTreeMap<SetName, SetUsers>,
    /// Member sources by number. Equal sources of several sets share one entry.
    sources: BTreeMap<u32, SourceState>,
    numbers: BTreeMap<MemberSource, u32>,
    /// The sources that are selectors, for lookup by pod.
    selectors: SelectorIndex,
    /// The other sources: every pod can contribute to them.
    unindexed: BTreeSet<u32>,
    next: u32,
}

#[derive(Debug, Default)]
struct SetUsers {
    chains: usize,
    sources: BTreeSet<u32>,
}

#[derive(Debug)]
struct SourceState {
    source: MemberSource,
    members: BTreeMap<SetName, (Family, BTreeSet<SetMember>)>,
}

/// The elements that a pod contributes, by set.
type MembersBySet<'a> = BTreeMap<&'a SetName, BTreeSet<Element>>;

impl Sets {
    /// The current sets with their elements.
    pub(super) const fn sets(&self) -> &OrdMap<SetName, Set> {
        &self.sets
    }

    /// Which pods each set contains.
    pub(super) const fn comments(&self) -> &OrdMap<SetName, Comment> {
        &self.comments
    }

    /// Registers a chain as a user of the set. Creates and fills the set for the first one.
    pub(super) fn acquire(&mut self, expr: &SetExpr<'_>, pod_index: &PodIndex) -> SetName {
        let name = SetName::new(&expr.name()).expect("prefix and hexadecimal digits are valid");
        if let Some(users) = self.users.get_mut(&name) {
            users.chains += 1;
            return name;
        }
        let mut set = expr.empty();
        let mut users = SetUsers { chains: 1, sources: BTreeSet::new() };
        match expr.contents() {
            SetContents::Fixed(elements) => set.elements = elements,
            SetContents::FromPods(family, by_source) => {
                for (source, members) in by_source {
                    let mut fill = |view: PodView<'_>| set.elements.extend(source.elements(&members, family, view.pod));
                    match &source {
                        MemberSource::Selected(selector) => pod_index.select(selector).into_iter().for_each(&mut fill),
                        MemberSource::AnyPod | MemberSource::Within(_) => pod_index.endpoints().for_each(&mut fill),
                    }
                    users.sources.insert(self.register(source, &name, (family, members)));
                }
            }
        }
        self.sets.insert(name.clone(), set);
        if let Some(comment) = expr.comment() {
            self.comments.insert(name.clone(), comment);
        }
        self.users.insert(name.clone(), users);
        name
    }

    fn register(&mut self, source: MemberSource, set: &SetName, members: (Family, BTreeSet<SetMember>)) -> u32 {
        let number = match self.numbers.get(&source) {
            Some(number) => *number,
            None => {
                self.next += 1;
                match &source {
                    MemberSource::Selected(selector) => self.selectors.insert(selector, self.next),
                    MemberSource::AnyPod | MemberSource::Within(_) => _ = self.unindexed.insert(self.next),
                }
                self.numbers.insert(source.clone(), self.next);
                self.sources.insert(self.next, SourceState { source, members: BTreeMap::new() });
                self.next
            }
        };
        if let Some(state) = self.sources.get_mut(&number) {
            state.members.insert(set.clone(), members);
        }
        number
    }

    /// Removes a chain as a user of the set. Deletes the set with its last user.
    pub(super) fn release(&mut self, name: &SetName) {
        let Some(users) = self.users.get_mut(name) else { return };
        users.chains -= 1;
        if users.chains > 0 {
            return;
        }
        let sources = self.users.remove(name).map(|users| users.sources).unwrap_or_default();
        self.sets.remove(name);
        self.comments.remove(name);
        for number in sources {
            let Some(state) = self.sources.get_mut(&number) else { continue };
            state.members.remove(name);
            if state.members.is_empty() {
                self.remove_source(number);
            }
        }
    }

    fn remove_source(&mut self, number: u32) {
        let Some(SourceState { source, .. }) = self.sources.remove(&number) else { return };
        self.numbers.remove(&source);
        match &source {
            MemberSource::Selected(selector) => self.selectors.remove(selector, number),
            MemberSource::AnyPod | MemberSource::Within(_) => _ = self.unindexed.remove(&number),
        }
    }

    /// Updates set elements after a change of a pod or of its namespace's labels. The pod index has the new state.
    pub(super) fn update_pod(&mut self, before: Option<PodView<'_>>, after: Option<PodView<'_>>, pod_index: &PodIndex) {
        let (had, has) = (self.members_of(before), self.members_of(after));
        let nothing = BTreeSet::new();
        let id = before.or(after).map(|view| view.id);
        let mut removed: Vec<(SetName, Element)> = Vec::new();
        for (set, elements) in &had {
            let kept = has.get(set).unwrap_or(&nothing);
            for element in elements.difference(kept) {
                // Two pods can have the same address for a short time. Keep what the other pod contributes.
                let others = address(element).into_iter().flat_map(|address| pod_index.with_address(address));
                let mut others = others.filter(|other| Some(other.id) != id);
                if !others
                    .any(|other| self.members_of(Some(other)).get(set).is_some_and(|members| members.contains(element)))
                {
                    removed.push(((*set).clone(), element.clone()));
                }
            }
        }
        let added = has.iter().flat_map(|(set, elements)| elements.iter().map(|e| ((*set).clone(), e.clone())));
        let added: Vec<(SetName, Element)> =
            added.filter(|(set, element)| had.get(set).is_none_or(|had| !had.contains(element))).collect();
        for (name, element) in removed {
            if let Some(set) = self.sets.get_mut(&name) {
                set.elements.remove(&element);
            }
        }
        for (name, element) in added {
            if let Some(set) = self.sets.get_mut(&name).filter(|set| !set.elements.contains(&element)) {
                set.elements.insert(element);
            }
        }
    }

    fn members_of(&self, view: Option<PodView<'_>>) -> MembersBySet<'_> {
        let mut all = MembersBySet::new();
        let Some(view) = view.filter(PodView::is_endpoint) else { return all };
        for number in self.selectors.candidates(&view).iter().chain(&self.unindexed) {
            let Some(state) = self.sources.get(number) else { continue };
            let contributes = match &state.source {
                MemberSource::Selected(selector) => view.selected_by(selector),
                MemberSource::AnyPod | MemberSource::Within(_) => true,
            };
            if contributes {
                for (set, (family, members)) in &state.members {
                    all.entry(set).or_default().extend(state.source.elements(members, *family, view.pod));
                }
            }
        }
        all
    }
}

/// The address in the first field of a pod's element.
fn address(element: &Element) -> Option<IpAddr> {
    match element.first() {
        Some(Value::Addr(address)) => Some(*address),
        Some(Value::Net(_) | Value::IfName(_) | Value::Proto(_) | Value::Port(_) | Value::PortRange(..)) | None => None,
    }
}
