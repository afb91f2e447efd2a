//! The sets that chains look into, kept as the cluster changes: an element comes and goes with the pods that give it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use imbl::OrdMap;

use super::{
    anchors::SelectorIndex,
    set::{MemberSource, SetContents, SetExpr, SetMember},
    world::{PodIndex, PodView},
};
use crate::{
    model::Family,
    names::{Comment, SetName},
    ruleset::{Element, Set, Value},
};

/// The sets in use, and who gives what to which of them.
#[derive(Debug, Default)]
pub(super) struct Sets {
    filled: OrdMap<SetName, Set>,
    comments: OrdMap<SetName, Comment>,
    /// How many chains look into each, and who gives to it.
    users: BTreeMap<SetName, SetUsers>,
    givers: BTreeMap<u32, SourceState>,
    numbers: BTreeMap<MemberSource, u32>,
    /// Those givers that are selectors.
    selectors: SelectorIndex,
    /// The others: any pod may be one of them.
    wide: BTreeSet<u32>,
    next: u32,
}

#[derive(Debug, Default)]
struct SetUsers {
    chains: usize,
    givers: BTreeSet<u32>,
}

#[derive(Debug)]
struct SourceState {
    giver: MemberSource,
    gives: BTreeMap<SetName, (Family, BTreeSet<SetMember>)>,
}

/// PortMatch a pod gives, by set.
type MembersBySet<'a> = BTreeMap<&'a SetName, BTreeSet<Element>>;

impl Sets {
    /// The sets as they are now.
    pub(super) const fn filled(&self) -> &OrdMap<SetName, Set> {
        &self.filled
    }

    /// Which pods they hold.
    pub(super) const fn comments(&self) -> &OrdMap<SetName, Comment> {
        &self.comments
    }

    /// A chain looks into the set: it is made if it is not there.
    pub(super) fn acquire(&mut self, expr: &SetExpr<'_>, world: &PodIndex) -> SetName {
        let name = SetName::new(&expr.name()).expect("a prefix of ours and hexadecimal digits");
        if let Some(users) = self.users.get_mut(&name) {
            users.chains += 1;
            return name;
        }
        let mut set = expr.empty();
        let mut users = SetUsers { chains: 1, givers: BTreeSet::new() };
        match expr.contents() {
            SetContents::Fixed(elements) => set.elements = elements,
            SetContents::FromPods(family, by_giver) => {
                for (giver, gifts) in by_giver {
                    let mut fill = |view: PodView<'_>| set.elements.extend(giver.elements(&gifts, family, view.pod));
                    match &giver {
                        MemberSource::Selected(selector) => world.find(selector).into_iter().for_each(&mut fill),
                        MemberSource::AnyPod | MemberSource::Within(_) => world.all().for_each(&mut fill),
                    }
                    users.givers.insert(self.gives(giver, &name, (family, gifts)));
                }
            }
        }
        self.filled.insert(name.clone(), set);
        if let Some(comment) = expr.comment() {
            self.comments.insert(name.clone(), comment);
        }
        self.users.insert(name.clone(), users);
        name
    }

    fn gives(&mut self, giver: MemberSource, set: &SetName, gifts: (Family, BTreeSet<SetMember>)) -> u32 {
        let number = match self.numbers.get(&giver) {
            Some(number) => *number,
            None => {
                self.next += 1;
                match &giver {
                    MemberSource::Selected(selector) => self.selectors.insert(selector, self.next),
                    MemberSource::AnyPod | MemberSource::Within(_) => _ = self.wide.insert(self.next),
                }
                self.numbers.insert(giver.clone(), self.next);
                self.givers.insert(self.next, SourceState { giver, gives: BTreeMap::new() });
                self.next
            }
        };
        if let Some(state) = self.givers.get_mut(&number) {
            state.gives.insert(set.clone(), gifts);
        }
        number
    }

    /// A chain looks into the set no more: it goes with the last one.
    pub(super) fn release(&mut self, name: &SetName) {
        let Some(users) = self.users.get_mut(name) else { return };
        users.chains -= 1;
        if users.chains > 0 {
            return;
        }
        let givers = self.users.remove(name).map(|users| users.givers).unwrap_or_default();
        self.filled.remove(name);
        self.comments.remove(name);
        for number in givers {
            let Some(state) = self.givers.get_mut(&number) else { continue };
            state.gives.remove(name);
            if state.gives.is_empty() {
                self.forget(number);
            }
        }
    }

    fn forget(&mut self, number: u32) {
        let Some(SourceState { giver, .. }) = self.givers.remove(&number) else { return };
        self.numbers.remove(&giver);
        match &giver {
            MemberSource::Selected(selector) => self.selectors.remove(selector, number),
            MemberSource::AnyPod | MemberSource::Within(_) => _ = self.wide.remove(&number),
        }
    }

    /// Follows a change of a pod or of its namespace's labels. The world has it already.
    pub(super) fn follow(&mut self, before: Option<PodView<'_>>, after: Option<PodView<'_>>, world: &PodIndex) {
        let (had, has) = (self.given(before), self.given(after));
        let nothing = BTreeSet::new();
        let id = before.or(after).map(|view| view.id);
        let mut gone: Vec<(SetName, Element)> = Vec::new();
        for (set, elements) in &had {
            let kept = has.get(set).unwrap_or(&nothing);
            for element in elements.difference(kept) {
                // For a moment two pods may have one address: what the other one gives stays.
                let others = address(element).into_iter().flat_map(|address| world.at(address));
                let mut others = others.filter(|other| Some(other.id) != id);
                if !others.any(|other| self.given(Some(other)).get(set).is_some_and(|given| given.contains(element))) {
                    gone.push(((*set).clone(), element.clone()));
                }
            }
        }
        let come = has.iter().flat_map(|(set, elements)| elements.iter().map(|e| ((*set).clone(), e.clone())));
        let come: Vec<(SetName, Element)> =
            come.filter(|(set, element)| had.get(set).is_none_or(|had| !had.contains(element))).collect();
        for (name, element) in gone {
            if let Some(set) = self.filled.get_mut(&name) {
                set.elements.remove(&element);
            }
        }
        for (name, element) in come {
            if let Some(set) = self.filled.get_mut(&name).filter(|set| !set.elements.contains(&element)) {
                set.elements.insert(element);
            }
        }
    }

    fn given(&self, view: Option<PodView<'_>>) -> MembersBySet<'_> {
        let mut all = MembersBySet::new();
        let Some(view) = view.filter(PodView::is_endpoint) else { return all };
        for number in self.selectors.candidates(&view).iter().chain(&self.wide) {
            let Some(state) = self.givers.get(number) else { continue };
            let has_the_right = match &state.giver {
                MemberSource::Selected(selector) => view.found_by(selector),
                MemberSource::AnyPod | MemberSource::Within(_) => true,
            };
            if has_the_right {
                for (set, (family, gifts)) in &state.gives {
                    all.entry(set).or_default().extend(state.giver.elements(gifts, *family, view.pod));
                }
            }
        }
        all
    }
}

/// The address that an element of a pod begins with.
fn address(element: &Element) -> Option<IpAddr> {
    match element.first() {
        Some(Value::Addr(address)) => Some(*address),
        Some(Value::Net(_) | Value::IfName(_) | Value::Proto(_) | Value::Port(_) | Value::PortRange(..)) | None => None,
    }
}
