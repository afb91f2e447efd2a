//! In which parts a transaction is committed, so that no packet is judged by a mixture.
//!
//! A packet that is under way while the kernel goes from one generation to the next takes all chains as they were when it
//! came to the hook (`nft_do_chain` reads the generation once), but elements as they are when it looks for them
//! (`nft_genmask_cur` in each lookup). So a verdict map can lead it, already, into a chain that for it has no rules yet:
//! it comes out at the end and is dropped, though it may pass before and after. Such chains are made before, in a commit
//! of their own, while nothing leads to them.

use std::collections::BTreeSet;

use super::{Step, Transaction, Verdict};
use crate::names::{ChainName, SetName};

impl Transaction {
    /// The transactions to commit, one after the other: at most one that makes what nothing leads to, and one that does
    /// the rest. Whoever stops in between has changed nothing that a packet meets.
    #[must_use]
    pub fn stages(&self) -> Vec<Self> {
        let new = NewObjects::of(self.steps());
        if !new.is_led_to(self.steps()) || new.takes_a_place(self.steps()) {
            return vec![self.clone()];
        }
        let (before, rest): (Vec<Step>, Vec<Step>) = self.steps().iter().cloned().partition(|step| new.is_about(step));
        [before, rest].map(Self::from_iter).into()
    }
}

/// What a transaction makes.
struct NewObjects<'a> {
    chains: BTreeSet<&'a ChainName>,
    /// Sets and maps.
    sets: BTreeSet<&'a SetName>,
}

impl<'a> NewObjects<'a> {
    fn of(steps: &'a [Step]) -> Self {
        let mut new = Self { chains: BTreeSet::new(), sets: BTreeSet::new() };
        for step in steps {
            match step {
                Step::AddChain(name, None) => _ = new.chains.insert(name),
                Step::AddSet(name, ..) | Step::AddMap(name, _) => _ = new.sets.insert(name),
                _ => {}
            }
        }
        new
    }

    /// Whether a map that is there gets an element that leads into one of these chains.
    fn is_led_to(&self, steps: &[Step]) -> bool {
        steps.iter().any(|step| match step {
            Step::AddMapElements(map, elements) if !self.sets.contains(map) => {
                elements.values().filter_map(Verdict::target).any(|chain| self.chains.contains(chain))
            }
            _ => false,
        })
    }

    /// Whether something must go first, or is met by packets as soon as it is there: then all is done at once.
    fn takes_a_place(&self, steps: &[Step]) -> bool {
        steps.iter().any(|step| match step {
            Step::DeleteTable | Step::AddChain(_, Some(_)) => true,
            Step::DeleteChain(name) | Step::FlushChain(name) => self.chains.contains(name),
            Step::DeleteSet(name) | Step::DeleteMap(name) => self.sets.contains(name),
            _ => false,
        })
    }

    /// Whether the step makes one of these, or fills it.
    fn is_about(&self, step: &Step) -> bool {
        match step {
            Step::AddSet(..) | Step::AddMap(..) | Step::AddChain(..) => true,
            Step::AddElements(name, _) | Step::AddMapElements(name, _) => self.sets.contains(name),
            Step::AddRule(chain, _) => self.chains.contains(chain),
            _ => false,
        }
    }
}
