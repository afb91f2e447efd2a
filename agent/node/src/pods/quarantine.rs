//! Addresses whose conntrack entries may still be those of an earlier pod: a new pod must not inherit them.
//!
//! After the start the entries of all addresses that no running pod has are flushed once, because nobody knows who had them
//! while the agent was away. From then on an address is flushed after its pod was deleted; the start of a pod waits for that
//! only if it gets the address before. A free address gets no new entries: the route to the node's podCIDR is a blackhole.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;

/// Pause before a flush that failed is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(250);

/// A request to delete conntrack entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlushRequest {
    /// The addresses at either end of the entries.
    pub addresses: AddressSet,
    /// How long the flush may wait for more of them.
    pub urgency: Urgency,
}

/// Addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AddressSet {
    /// These addresses.
    Of(BTreeSet<IpAddr>),
    /// The addresses of some networks, apart from those in use.
    Unused {
        /// The networks.
        within: Vec<IpNet>,
        /// The addresses in use.
        except: BTreeSet<IpAddr>,
    },
}

/// How long a flush may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// The start of a pod waits for it.
    Immediate,
    /// Nothing waits for it.
    Deferred,
}

/// The result of one or more [`FlushRequest`]s that were executed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlushedAddresses {
    /// The requested addresses.
    pub addresses: Vec<AddressSet>,
    /// The number of deleted entries.
    pub result: Result<usize, String>,
}

/// The flush after the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum InitialFlush {
    #[default]
    Pending,
    Running,
    Failed {
        retry_at: Instant,
    },
    Done,
}

/// An address that a pod has left and that is not released yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quarantined {
    /// The pod is deleted. Its rules are in force, or are being removed by the change under way.
    Draining(Rules),
    /// The flush is requested.
    Flushing,
    /// The flush failed; it is tried again when a pod waits for the address.
    FlushFailed { retry_at: Instant },
}

/// The rules of a deleted pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// The last plan has them.
    InForce,
    /// The last plan does not have them any more.
    BeingRemoved,
}

/// The addresses that are not released yet. An address is released when its flush has succeeded.
#[derive(Debug, Default)]
pub(super) struct AddressQuarantine {
    initial: InitialFlush,
    addresses: BTreeMap<IpAddr, Quarantined>,
}

impl AddressQuarantine {
    /// A pod has left the address.
    pub(super) fn drain(&mut self, address: IpAddr) {
        self.addresses.insert(address, Quarantined::Draining(Rules::InForce));
    }

    /// The last plan does not have the rules of deleted pods any more.
    pub(super) fn planned(&mut self) {
        for state in self.addresses.values_mut() {
            if *state == Quarantined::Draining(Rules::InForce) {
                *state = Quarantined::Draining(Rules::BeingRemoved);
            }
        }
    }

    /// Whether a pod can start with these addresses.
    pub(super) fn are_released(&self, addresses: &[IpAddr]) -> bool {
        self.initial == InitialFlush::Done && !addresses.iter().any(|address| self.addresses.contains_key(address))
    }

    /// The flush after the start, if it is due. `within` are the networks of this node's pods, `in_use` the addresses of
    /// running pods.
    pub(super) fn flush_initial(
        &mut self,
        now: Instant,
        within: &[IpNet],
        in_use: impl IntoIterator<Item = IpAddr>,
    ) -> Option<FlushRequest> {
        let due = match self.initial {
            InitialFlush::Pending => true,
            InitialFlush::Failed { retry_at } => retry_at <= now,
            InitialFlush::Running | InitialFlush::Done => false,
        };
        if !due || within.is_empty() {
            return None;
        }
        self.initial = InitialFlush::Running;
        // The node's own address in the overlay is the first of the network.
        let except = in_use.into_iter().chain(within.iter().map(IpNet::network)).collect();
        let addresses = AddressSet::Unused { within: within.to_vec(), except };
        Some(FlushRequest { addresses, urgency: Urgency::Immediate })
    }

    /// Flushes those of the addresses that a pod waits for.
    pub(super) fn flush_awaited<'a>(
        &mut self,
        now: Instant,
        addresses: impl IntoIterator<Item = &'a IpAddr>,
    ) -> Option<FlushRequest> {
        let mut due = BTreeSet::new();
        for address in addresses {
            if let Some(state) = self.addresses.get_mut(address)
                && match *state {
                    Quarantined::Draining(_) => true,
                    Quarantined::FlushFailed { retry_at } => retry_at <= now,
                    Quarantined::Flushing => false,
                }
            {
                *state = Quarantined::Flushing;
                due.insert(*address);
            }
        }
        request(due, Urgency::Immediate)
    }

    /// Flushes the addresses of deleted pods: the last plan, without their rules, is in force.
    pub(super) fn flush_drained(&mut self) -> Option<FlushRequest> {
        let mut due = BTreeSet::new();
        for (address, state) in &mut self.addresses {
            if *state == Quarantined::Draining(Rules::BeingRemoved) {
                *state = Quarantined::Flushing;
                due.insert(*address);
            }
        }
        request(due, Urgency::Deferred)
    }

    /// Addresses were flushed, or not.
    pub(super) fn flushed(&mut self, now: Instant, flushed: &FlushedAddresses) {
        let (succeeded, retry_at) = (flushed.result.is_ok(), now + RETRY);
        for addresses in &flushed.addresses {
            match addresses {
                AddressSet::Unused { .. } if succeeded => self.initial = InitialFlush::Done,
                AddressSet::Unused { .. } => self.initial = InitialFlush::Failed { retry_at },
                AddressSet::Of(addresses) => {
                    for address in addresses {
                        // An address that another pod has left meanwhile has to be flushed again.
                        if self.addresses.get(address) != Some(&Quarantined::Flushing) {
                            continue;
                        }
                        if succeeded {
                            self.addresses.remove(address);
                        } else {
                            self.addresses.insert(*address, Quarantined::FlushFailed { retry_at });
                        }
                    }
                }
            }
        }
    }

    /// When a failed flush is due again: the one after the start, or one of these addresses.
    pub(super) fn retry_at<'a>(&self, addresses: impl IntoIterator<Item = &'a IpAddr>) -> Option<Instant> {
        let failed = addresses.into_iter().filter_map(|address| match self.addresses.get(address)? {
            Quarantined::FlushFailed { retry_at } => Some(*retry_at),
            Quarantined::Draining(_) | Quarantined::Flushing => None,
        });
        let initial = if let InitialFlush::Failed { retry_at } = self.initial { Some(retry_at) } else { None };
        failed.chain(initial).min()
    }
}

fn request(addresses: BTreeSet<IpAddr>, urgency: Urgency) -> Option<FlushRequest> {
    (!addresses.is_empty()).then_some(FlushRequest { addresses: AddressSet::Of(addresses), urgency })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 1, 2));

    /// A quarantine after the initial flush, with an address that a pod has left.
    fn draining(now: Instant) -> AddressQuarantine {
        let mut quarantine = AddressQuarantine::default();
        let initial = quarantine.flush_initial(now, &["10.244.1.0/24".parse().unwrap()], []).unwrap();
        quarantine.flushed(now, &result(initial.addresses, Ok(0)));
        assert!(quarantine.are_released(&[AT]));
        quarantine.drain(AT);
        quarantine
    }

    fn of(addresses: &[IpAddr]) -> AddressSet {
        AddressSet::Of(addresses.iter().copied().collect())
    }

    fn result(addresses: AddressSet, result: Result<usize, String>) -> FlushedAddresses {
        FlushedAddresses { addresses: vec![addresses], result }
    }

    #[test]
    fn a_running_flush_is_not_requested_again_and_an_address_that_was_left_meanwhile_is_not_released() {
        let now = Instant::now();
        let mut quarantine = draining(now);
        assert_eq!(quarantine.flush_drained(), None, "its rules are in force");
        quarantine.planned();
        let request = quarantine.flush_drained();
        assert_eq!(request, Some(FlushRequest { addresses: of(&[AT]), urgency: Urgency::Deferred }));
        assert_eq!(quarantine.flush_awaited(now, &[AT]), None, "under way");
        quarantine.drain(AT);
        quarantine.flushed(now, &result(of(&[AT]), Ok(1)));
        assert!(!quarantine.are_released(&[AT]), "another pod has had it since the request");
        assert!(quarantine.flush_awaited(now, &[AT]).is_some());
        quarantine.flushed(now, &result(of(&[AT]), Ok(1)));
        assert!(quarantine.are_released(&[AT]));
    }

    #[test]
    fn a_failed_flush_is_tried_again_after_a_pause_if_a_pod_waits_for_it() {
        let now = Instant::now();
        let mut quarantine = draining(now);
        assert!(quarantine.flush_awaited(now, &[AT]).is_some());
        quarantine.flushed(now, &result(of(&[AT]), Err("requested by the test".to_owned())));
        assert_eq!((quarantine.retry_at(&[AT]), quarantine.retry_at(&[])), (Some(now + RETRY), None));
        assert_eq!(quarantine.flush_awaited(now, &[AT]), None, "not yet");
        assert!(quarantine.flush_awaited(now + RETRY, &[AT]).is_some());
    }
}
