//! The threads that look after the kernel's list of connections: one reviews it when policies have changed, the other
//! clears what an address leaves behind. They are two, so that a pod's start never waits for a review of a long list.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use imbl::OrdMap;
use tokio::sync::mpsc::UnboundedSender;
use towpath_core::{
    connection::{AffectedPods, Connection, Reevaluation},
    model::{Endpoint, PodId, Protocol},
    names::IfName,
    policy::{
        eval::{Flow, FlowEndpoint, FlowTransport, eval},
        ir::{Direction, Pod, Snapshot},
    },
    ruleset::{self, Ruleset},
};
use towpath_dataplane::conntrack::{Addresses, Conntrack, ConntrackError, Reviewed};

use crate::denials::Cause;

/// How many of the connections that were cut are named.
const EXAMPLES: usize = 3;
/// How long addresses that pods have left wait for more of them.
const GATHER: Duration = Duration::from_millis(500);

/// What a review is made from: everything as it is in force. All of it is shared, so that it costs nothing to have it.
#[derive(Debug, Clone)]
pub struct Order {
    /// Our table.
    pub table: Ruleset,
    /// The pods of this node.
    pub endpoints: OrdMap<IfName, Arc<Endpoint>>,
    /// The node's own addresses.
    pub node: BTreeSet<IpAddr>,
    /// The policies, to name the one that denies.
    pub snapshot: Snapshot,
    /// Whose connections are looked through.
    pub touched: AffectedPods,
}

/// How a review went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Connections that were cut.
    pub cut: usize,
    /// Those that are cut, these and earlier ones.
    pub held: usize,
    /// Those that had been cut and may go on.
    pub restored: usize,
    /// Some of the cut ones, and why.
    pub examples: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Addresses whose connections are to be forgotten.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clear {
    /// Whose.
    pub addresses: Addresses,
    /// How long that may wait.
    pub urgency: Urgency,
}

/// How long something may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// A pod's start waits for it.
    AtOnce,
    /// Nobody waits.
    Soon,
}

/// The answer to one or more of them.
#[derive(Debug)]
pub struct Cleared {
    /// What was asked for.
    pub addresses: Vec<Addresses>,
    /// How many connections went.
    pub result: Result<usize, ConntrackError>,
}

impl Order {
    /// Cuts what is denied.
    ///
    /// # Errors
    /// See [`Conntrack::review`].
    pub fn carry_out(&self, conntrack: &mut Conntrack) -> Result<Cuts, ConntrackError> {
        let start = Instant::now();
        let pods = self.endpoints.values().map(|endpoint| &**endpoint);
        let review = Reevaluation::new(&self.table, pods, &self.node, &self.touched);
        let reviewed = conntrack.review(&review)?;
        Ok(Cuts { took: start.elapsed(), ..self.describe(&reviewed) })
    }

    pub(crate) fn describe(&self, reviewed: &Reviewed) -> Cuts {
        let told = &reviewed.cut[..reviewed.cut.len().min(EXAMPLES)];
        let near = if told.is_empty() { Snapshot::default() } else { self.near(told) };
        let example = |(connection, direction): &(Connection, Direction)| {
            format!("{connection}: {direction} {}", self.cause(&near, connection, *direction))
        };
        Cuts {
            cut: reviewed.cut.len(),
            held: reviewed.cut.len() + reviewed.still_cut,
            restored: reviewed.restored,
            examples: told.iter().map(example).collect(),
            took: Duration::ZERO,
        }
    }

    /// The cluster with no pods but those that have an address of one of the connections. The evaluator walks over all
    /// pods for every peer of every rule; so it need not be done but once.
    fn near(&self, connections: &[(Connection, Direction)]) -> Snapshot {
        let addresses: BTreeSet<IpAddr> = connections.iter().flat_map(|(c, _)| [c.from, c.to]).collect();
        let is_near = |pod: &Pod| pod.addresses.iter().any(|address| addresses.contains(address));
        let pods = self.snapshot.pods.iter().filter(|(_, pod)| is_near(pod));
        let pods = pods.map(|(id, pod)| (id.clone(), Arc::clone(pod))).collect();
        Snapshot { pods, ..self.snapshot.clone() }
    }

    /// Why it is denied, in the evaluator's judgement.
    fn cause(&self, near: &Snapshot, connection: &Connection, direction: Direction) -> String {
        let party = |address: IpAddr| FlowEndpoint { address, pod: self.pod_at(address) };
        let transport = match connection.transport {
            ruleset::Transport::Ports { protocol, destination } => Protocol::ALL
                .into_iter()
                .find(|known| known.number() == protocol)
                .map_or(FlowTransport::Other(protocol), |known| FlowTransport::Port(known, destination)),
            ruleset::Transport::NeighbourDiscovery => return "denied".to_owned(),
            ruleset::Transport::Other(protocol) => FlowTransport::Other(protocol),
        };
        let verdict = eval(near, &Flow { from: party(connection.from), to: party(connection.to), transport });
        Cause::from(match direction {
            Direction::Ingress => verdict.ingress,
            Direction::Egress => verdict.egress,
        })
        .to_string()
    }

    fn pod_at(&self, address: IpAddr) -> Option<PodId> {
        self.endpoints.values().find(|endpoint| endpoint.addresses.contains(&address)).map(|e| e.pod.clone())
    }
}

/// The ways to the two threads.
#[derive(Debug)]
pub struct Queues {
    /// To the one that reviews. One order at a time.
    pub reviews: Sender<Box<Order>>,
    /// To the one that clears.
    pub clears: Sender<Clear>,
}

/// Starts the threads. They end with the queues.
///
/// # Errors
/// If one cannot be started.
pub fn spawn<T>(conntracks: [Conntrack; 2], to: &UnboundedSender<T>) -> io::Result<Queues>
where
    T: From<Result<Cuts, ConntrackError>> + From<Cleared> + Send + 'static,
{
    let [mut reviewing, mut clearing] = conntracks;
    let (reviews, orders) = channel::<Box<Order>>();
    let answers = to.clone();
    thread::Builder::new().name("reviews".to_owned()).spawn(move || {
        // Nobody listens any more when the answer cannot be sent.
        orders.iter().all(|order| answers.send(order.carry_out(&mut reviewing).into()).is_ok())
    })?;
    let (clears, orders) = channel::<Clear>();
    let answers = to.clone();
    thread::Builder::new().name("clears".to_owned()).spawn(move || {
        while let Some(addresses) = gather(&orders) {
            let result = addresses.iter().map(|addresses| clearing.clear(addresses)).sum();
            if answers.send(Cleared { addresses, result }.into()).is_err() {
                return;
            }
        }
    })?;
    Ok(Queues { reviews, clears })
}

/// Waits for something to clear, and for more of it unless somebody waits: all single addresses in one, because each
/// clearing costs a walk through the kernel's whole table. `None` when nobody asks any more.
fn gather(orders: &Receiver<Clear>) -> Option<Vec<Addresses>> {
    let mut next = orders.recv().ok()?;
    let mut end = Instant::now() + GATHER;
    let (mut single, mut all) = (BTreeSet::new(), Vec::new());
    loop {
        match next.addresses {
            Addresses::Of(addresses) => single.extend(addresses),
            vacant @ Addresses::Vacant { .. } => all.push(vacant),
        }
        if next.urgency == Urgency::AtOnce {
            end = Instant::now();
        }
        match orders.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(more) => next = more,
            Err(_) => break,
        }
    }
    if !single.is_empty() {
        all.push(Addresses::Of(single));
    }
    Some(all)
}

#[cfg(test)]
mod tests;
