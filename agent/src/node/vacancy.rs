//! Which addresses the kernel may remember connections of that are an earlier pod's: a new pod inherits none.
//!
//! Once at the start everything is forgotten of addresses that no pod has, because nobody knows who had them while the
//! agent was away. From then on an address is forgotten when its pod has left, and the start of a pod waits for that only
//! if it gets the address before. A free address gets no new connections: the route to the node's podCIDR is a blackhole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use towpath_dataplane::conntrack::Addresses;

use crate::connections::{Clear, Urgency};

/// Pause before what could not be cleared is tried again.
const AGAIN: Duration = Duration::from_millis(250);

/// How far the clearing at the start has got.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Sweep {
    #[default]
    Wanted,
    Asked,
    Failed(Instant),
    Done,
}

/// How far the clearing of an address has got that a pod has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Its rules may still be in force, or its clearing has failed.
    Kept,
    /// To be tried again then.
    Stuck(Instant),
    /// Being cleared.
    Asked,
}

/// What is known of addresses.
#[derive(Debug, Default)]
pub(super) struct Vacancy {
    sweep: Sweep,
    remembered: BTreeMap<IpAddr, Memory>,
}

impl Vacancy {
    /// A pod has left the address.
    pub(super) fn left(&mut self, address: IpAddr) {
        self.remembered.insert(address, Memory::Kept);
    }

    /// Whether a pod can have them.
    pub(super) fn are_clean(&self, addresses: &[IpAddr]) -> bool {
        self.sweep == Sweep::Done && !addresses.iter().any(|address| self.remembered.contains_key(address))
    }

    /// What is to be cleared now at the start, if it is time. `within` are the networks of this node's pods, `taken` are
    /// the addresses of pods that run.
    pub(super) fn sweep(&mut self, now: Instant, within: &[IpNet], taken: BTreeSet<IpAddr>) -> Option<Clear> {
        let due = match self.sweep {
            Sweep::Wanted => true,
            Sweep::Failed(again) => again <= now,
            Sweep::Asked | Sweep::Done => false,
        };
        if !due || within.is_empty() {
            return None;
        }
        self.sweep = Sweep::Asked;
        // The node's own address in the overlay is the first of the network.
        let taken = taken.into_iter().chain(within.iter().map(IpNet::network)).collect();
        Some(Clear { addresses: Addresses::Vacant { within: within.to_vec(), taken }, urgency: Urgency::AtOnce })
    }

    /// Clears those of the addresses that are remembered and not being cleared already.
    pub(super) fn clear<'a>(
        &mut self,
        now: Instant,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
        urgency: Urgency,
    ) -> Option<Clear> {
        let mut due = BTreeSet::new();
        for address in addresses {
            if let Some(memory) = self.remembered.get_mut(address)
                && match *memory {
                    Memory::Kept => true,
                    Memory::Stuck(again) => again <= now,
                    Memory::Asked => false,
                }
            {
                *memory = Memory::Asked;
                due.insert(*address);
            }
        }
        (!due.is_empty()).then_some(Clear { addresses: Addresses::Of(due), urgency })
    }

    /// Addresses have been cleared, or not.
    pub(super) fn cleared(&mut self, now: Instant, all: &[Addresses], succeeded: bool) {
        for addresses in all {
            match addresses {
                Addresses::Vacant { .. } => {
                    self.sweep = if succeeded { Sweep::Done } else { Sweep::Failed(now + AGAIN) }
                }
                Addresses::Of(addresses) => {
                    for address in addresses {
                        // One that was left again meanwhile has to be cleared again.
                        if self.remembered.get(address) == Some(&Memory::Asked) {
                            if succeeded {
                                self.remembered.remove(address);
                            } else {
                                self.remembered.insert(*address, Memory::Stuck(now + AGAIN));
                            }
                        }
                    }
                }
            }
        }
    }

    /// When something that failed is to be tried again, of the start and of these addresses.
    pub(super) fn again<'a>(&self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> Option<Instant> {
        let stuck = addresses.into_iter().filter_map(|address| match self.remembered.get(address)? {
            Memory::Stuck(again) => Some(*again),
            Memory::Kept | Memory::Asked => None,
        });
        let sweep = if let Sweep::Failed(again) = self.sweep { Some(again) } else { None };
        stuck.chain(sweep).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 2));

    /// One that has forgotten what was before the start, with an address that a pod has left.
    fn left(now: Instant) -> Vacancy {
        let mut vacancy = Vacancy::default();
        let sweep = vacancy.sweep(now, &["10.244.1.0/24".parse().unwrap()], BTreeSet::new()).unwrap();
        vacancy.cleared(now, &[sweep.addresses], true);
        assert!(vacancy.are_clean(&[AT]));
        vacancy.left(AT);
        vacancy
    }

    fn of(addresses: &[IpAddr]) -> Addresses {
        Addresses::Of(addresses.iter().copied().collect())
    }

    #[test]
    fn what_is_being_cleared_is_not_asked_for_again_and_what_was_left_meanwhile_is_not_clean() {
        let now = Instant::now();
        let mut vacancy = left(now);
        let asked = vacancy.clear(now, &[AT], Urgency::Soon);
        assert_eq!(asked, Some(Clear { addresses: of(&[AT]), urgency: Urgency::Soon }));
        assert_eq!(vacancy.clear(now, &[AT], Urgency::AtOnce), None, "under way");
        vacancy.left(AT);
        vacancy.cleared(now, &[of(&[AT])], true);
        assert!(!vacancy.are_clean(&[AT]), "another pod has had it since it was asked for");
        assert!(vacancy.clear(now, &[AT], Urgency::AtOnce).is_some());
        vacancy.cleared(now, &[of(&[AT])], true);
        assert!(vacancy.are_clean(&[AT]));
    }

    #[test]
    fn what_could_not_be_cleared_is_tried_again_after_a_pause_if_somebody_waits_for_it() {
        let now = Instant::now();
        let mut vacancy = left(now);
        assert!(vacancy.clear(now, &[AT], Urgency::AtOnce).is_some());
        vacancy.cleared(now, &[of(&[AT])], false);
        assert_eq!((vacancy.again(&[AT]), vacancy.again(&[])), (Some(now + AGAIN), None));
        assert_eq!(vacancy.clear(now, &[AT], Urgency::AtOnce), None, "not yet");
        assert!(vacancy.clear(now + AGAIN, &[AT], Urgency::AtOnce).is_some());
    }
}
