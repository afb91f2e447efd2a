//! The threads that work on conntrack entries: one evaluates policies for established connections again, the other flushes
//! the entries of addresses. They are two, so that the start of a pod never waits for a re-evaluation of a long list.

use std::{
    collections::BTreeSet,
    io,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use towpath_dataplane::conntrack::{Conntrack, ConntrackError, FlushTarget};
use towpath_node::{
    AddressSet, FlushRequest, FlushedAddresses, Input, ReevaluateOutcome, ReevaluateRequest, ReevaluateSummary, Urgency,
};

use crate::{error_text::with_causes, input::Arrival};

/// How long a deferred flush waits for more addresses.
const GATHER: Duration = Duration::from_millis(500);

/// The queues of the two threads.
#[derive(Debug)]
pub struct ConntrackQueues {
    /// Requests for policy re-evaluation. One at a time.
    pub reevaluate: Sender<Box<ReevaluateRequest>>,
    /// Requests to flush conntrack entries.
    pub flush: Sender<FlushRequest>,
}

/// Starts the threads. They end with the queues.
///
/// # Errors
/// If one cannot be started.
pub fn spawn(conntracks: [Conntrack; 2], to: &UnboundedSender<Arrival>) -> io::Result<ConntrackQueues> {
    let [mut reevaluating, mut flushing] = conntracks;
    let (reevaluate, requests) = channel::<Box<ReevaluateRequest>>();
    let results = to.clone();
    thread::Builder::new().name("reevaluate".to_owned()).spawn(move || {
        requests.iter().all(|request| {
            let result = revoke(&request, &mut reevaluating).map_err(|error| with_causes(&error));
            // The daemon has ended when it takes no result.
            results.send(Arrival::Input(Input::Reevaluated(result))).is_ok()
        })
    })?;
    let (flush, requests) = channel::<FlushRequest>();
    let results = to.clone();
    thread::Builder::new().name("flush".to_owned()).spawn(move || {
        while let Some(addresses) = gather(&requests) {
            let result = addresses.iter().map(|addresses| flushing.flush(&flush_target(addresses))).sum();
            let result = Result::map_err(result, |error: ConntrackError| with_causes(&error));
            let flushed = FlushedAddresses { addresses, result };
            if results.send(Arrival::Input(Input::Flushed(flushed))).is_err() {
                return;
            }
        }
    })?;
    Ok(ConntrackQueues { reevaluate, flush })
}

/// Revokes what is denied, and restores what is allowed again.
fn revoke(request: &ReevaluateRequest, conntrack: &mut Conntrack) -> Result<ReevaluateSummary, ConntrackError> {
    let start = Instant::now();
    let result = conntrack.reevaluate(&request.verdicts())?;
    let took = start.elapsed();
    let outcome =
        ReevaluateOutcome { revoked: result.revoked, still_revoked: result.still_revoked, restored: result.restored };
    Ok(request.summarize(&outcome, took))
}

fn flush_target(addresses: &AddressSet) -> FlushTarget {
    match addresses {
        AddressSet::Of(addresses) => FlushTarget::Addresses(addresses.clone()),
        AddressSet::Unused { within, except } => FlushTarget::Unused { within: within.clone(), except: except.clone() },
    }
}

/// Waits for a request, and for more unless one is immediate: all single addresses become one request, because each flush
/// walks through the kernel's whole table. `None` when the queue has ended.
fn gather(requests: &Receiver<FlushRequest>) -> Option<Vec<AddressSet>> {
    let mut next = requests.recv().ok()?;
    let mut end = Instant::now() + GATHER;
    let (mut single, mut all) = (BTreeSet::new(), Vec::new());
    loop {
        match next.addresses {
            AddressSet::Of(addresses) => single.extend(addresses),
            unused @ AddressSet::Unused { .. } => all.push(unused),
        }
        if next.urgency == Urgency::Immediate {
            end = Instant::now();
        }
        match requests.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(more) => next = more,
            Err(_) => break,
        }
    }
    if !single.is_empty() {
        all.push(AddressSet::Of(single));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn addresses_that_come_together_are_flushed_in_one_walk() {
        let (flush, requests) = channel();
        let of = |last: u8| AddressSet::Of([IpAddr::from([10, 244, 1, last])].into());
        let unused = AddressSet::Unused { within: vec!["10.244.1.0/24".parse().unwrap()], except: BTreeSet::new() };
        for addresses in [of(2), unused.clone(), of(3)] {
            flush.send(FlushRequest { addresses, urgency: Urgency::Deferred }).unwrap();
        }
        drop(flush);
        let both = AddressSet::Of([2, 3].map(|last| IpAddr::from([10, 244, 1, last])).into());
        assert_eq!(gather(&requests), Some(vec![unused, both]));
        assert_eq!(gather(&requests), None, "the queue has ended");
    }
}
