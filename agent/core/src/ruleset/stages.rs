//! Splits a transaction into stages, so that no packet is evaluated by a mixture of two generations.
//!
//! A packet that is in a hook while the kernel commits a new generation sees the rules of the old one (`nft_do_chain`
//! reads the generation once), but set and map elements as of each lookup (`nft_genmask_cur`). So a verdict map can send
//! it to a chain that, for this packet, has no rules yet. The packet reaches the end of the chain and is dropped, although
//! both generations accept it. Therefore new chains are created in a commit of their own, before any verdict refers to
//! them.
//!
//! Every match over [`Step`] here is exhaustive: a step in the wrong stage allows or denies packets for a moment, so a
//! new kind of step requires a decision.

use std::collections::BTreeSet;

use super::{Step, Transaction, Verdict};
use crate::names::{ChainName, SetName};

impl Transaction {
    /// The transactions to commit, in order: one that creates new objects without references to them, if that is
    /// necessary, and one with all other steps. Committing only the first affects no packet.
    #[must_use]
    pub fn stages(&self) -> Vec<Self> {
        let new = NewObjects::of(self.steps());
        if !new.are_targets(self.steps()) || new.must_be_atomic(self.steps()) {
            return vec![self.clone()];
        }
        let (create, rest): (Vec<Step>, Vec<Step>) = self.steps().iter().cloned().partition(|step| new.creates(step));
        [create, rest].map(Self::from_iter).into()
    }
}

/// The regular chains, sets and maps that a transaction creates.
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
                Step::AddChain(name, None, _) => _ = new.chains.insert(name),
                Step::AddSet(name, ..) | Step::AddMap(name, ..) => _ = new.sets.insert(name),
                Step::AddTable
                | Step::DeleteTable
                | Step::DeleteSet(_)
                | Step::AddElements(..)
                | Step::DeleteElements(..)
                | Step::DeleteMap(_)
                | Step::AddMapElements(..)
                | Step::DeleteMapElements(..)
                | Step::AddChain(_, Some(_), _)
                | Step::FlushChain(_)
                | Step::DeleteChain(_)
                | Step::AddRule(..) => {}
            }
        }
        new
    }

    /// Whether an existing map gets an element whose verdict goes to one of the new chains.
    fn are_targets(&self, steps: &[Step]) -> bool {
        steps.iter().any(|step| match step {
            Step::AddMapElements(map, elements) => {
                !self.sets.contains(map)
                    && elements.values().filter_map(Verdict::target).any(|chain| self.chains.contains(chain))
            }
            Step::AddTable
            | Step::DeleteTable
            | Step::AddSet(..)
            | Step::DeleteSet(_)
            | Step::AddElements(..)
            | Step::DeleteElements(..)
            | Step::AddMap(..)
            | Step::DeleteMap(_)
            | Step::DeleteMapElements(..)
            | Step::AddChain(..)
            | Step::FlushChain(_)
            | Step::DeleteChain(_)
            | Step::AddRule(..) => false,
        })
    }

    /// Whether the transaction cannot be split: it deletes the table, or deletes or flushes an object before it creates one
    /// of the same name.
    fn must_be_atomic(&self, steps: &[Step]) -> bool {
        steps.iter().any(|step| match step {
            Step::DeleteTable => true,
            Step::DeleteChain(name) | Step::FlushChain(name) => self.chains.contains(name),
            Step::DeleteSet(name) | Step::DeleteMap(name) => self.sets.contains(name),
            Step::AddTable
            | Step::AddSet(..)
            | Step::AddElements(..)
            | Step::DeleteElements(..)
            | Step::AddMap(..)
            | Step::AddMapElements(..)
            | Step::DeleteMapElements(..)
            | Step::AddChain(..)
            | Step::AddRule(..) => false,
        })
    }

    /// Whether the step creates or fills one of the new objects. Base chains are not among them: packets enter a base
    /// chain as soon as it exists, so it comes with its rules in the last stage.
    fn creates(&self, step: &Step) -> bool {
        match step {
            Step::AddSet(..) | Step::AddMap(..) | Step::AddChain(_, None, _) => true,
            Step::AddElements(name, _) | Step::AddMapElements(name, _) => self.sets.contains(name),
            Step::AddRule(chain, _) => self.chains.contains(chain),
            Step::AddTable
            | Step::DeleteTable
            | Step::DeleteSet(_)
            | Step::DeleteElements(..)
            | Step::DeleteMap(_)
            | Step::DeleteMapElements(..)
            | Step::AddChain(_, Some(_), _)
            | Step::FlushChain(_)
            | Step::DeleteChain(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use imbl::OrdMap;

    use super::*;
    use crate::{
        names::IfName,
        ruleset::{BaseChain, ChainType, Hook, Rule, Value},
    };

    fn chain(name: &str) -> ChainName {
        ChainName::new(name).unwrap()
    }

    /// An element of an existing map that goes to a new chain.
    fn lead_to(name: &str) -> Step {
        let key = vec![Value::IfName(IfName::of_pod("default", "web"))];
        Step::AddMapElements(SetName::new("from-pod").unwrap(), OrdMap::unit(key, Verdict::Goto(chain(name))))
    }

    fn filled(name: &str) -> [Step; 2] {
        [Step::AddChain(chain(name), None, None), Step::AddRule(chain(name), Rule::verdict(Vec::new(), Verdict::Drop))]
    }

    #[test]
    fn a_new_chain_is_filled_before_a_map_leads_to_it_and_a_new_base_chain_comes_with_its_rules() {
        let base = BaseChain { chain_type: ChainType::Nat, hook: Hook::Postrouting, priority: 100 };
        let base = Step::AddChain(chain("postrouting"), Some(base), None);
        let rule = Step::AddRule(chain("postrouting"), Rule::verdict(Vec::new(), Verdict::Return));
        let [create, fill] = filled("new");
        let steps = [base.clone(), create.clone(), fill.clone(), rule.clone(), lead_to("new")];
        let stages = Transaction::from_iter(steps).stages();
        let expected = [vec![create, fill], vec![base, rule, lead_to("new")]].map(Transaction::from_iter);
        assert_eq!(stages, expected);
    }

    #[test]
    fn what_replaces_an_object_of_the_same_name_is_one_commit() {
        let [create, fill] = filled("same");
        for first in [Step::DeleteChain(chain("same")), Step::FlushChain(chain("same")), Step::DeleteTable] {
            let transaction = Transaction::from_iter([first, create.clone(), fill.clone(), lead_to("same")]);
            assert_eq!(transaction.stages(), std::slice::from_ref(&transaction));
        }
        let leads_nowhere_new = Transaction::from_iter([create, fill]);
        assert_eq!(leads_nowhere_new.stages(), std::slice::from_ref(&leads_nowhere_new), "nothing refers to it");
    }
}
