//! The threads that look after the kernel's list of connections: one reviews it when policies have changed, the other
//! clears what an address leaves behind. They are two, so that a pod's start never waits for a review of a long list.

use std::{
    collections::BTreeSet,
    io,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use imbl::OrdMap;
use tokio::sync::mpsc::UnboundedSender;
use towpath_core::{
    connection::{Connection, Review},
    model::{Endpoint, PodId, Protocol},
    names::IfName,
    policy::{
        eval::{Outcome, Packet, Party, Transport, eval},
        ir::{Direction, Snapshot},
    },
    ruleset::{self, Ruleset},
};
use towpath_dataplane::{
    conntrack::{Conntrack, ConntrackError, Reviewed},
    local::Attachment,
};

/// How many of the connections that were cut are named.
const EXAMPLES: usize = 3;

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

/// Addresses that change hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clear {
    /// Who waits for it: the pod that gets them. `None` when a pod has left them.
    pub who: Option<Attachment>,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

/// Addresses that have been cleared.
#[derive(Debug)]
pub struct Cleared {
    /// Who waits for it.
    pub who: Option<Attachment>,
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
        let review = Review::new(&self.table, self.endpoints.values().map(|endpoint| &**endpoint), &self.node);
        let reviewed = conntrack.review(&review)?;
        Ok(Cuts { took: start.elapsed(), ..self.describe(&reviewed) })
    }

    pub(crate) fn describe(&self, reviewed: &Reviewed) -> Cuts {
        let example = |(connection, direction): &(Connection, Direction)| {
            format!("{connection}: {direction} {}", self.cause(connection, *direction))
        };
        Cuts {
            cut: reviewed.cut.len(),
            held: reviewed.cut.len() + reviewed.still_cut,
            restored: reviewed.restored,
            examples: reviewed.cut.iter().take(EXAMPLES).map(example).collect(),
            took: Duration::ZERO,
        }
    }

    /// Why it is denied, in the evaluator's judgement.
    fn cause(&self, connection: &Connection, direction: Direction) -> String {
        let party = |address: IpAddr| Party { address, pod: self.pod_at(address) };
        let transport = match connection.transport {
            ruleset::Transport::Ports { protocol, destination } => Protocol::ALL
                .into_iter()
                .find(|known| known.number() == protocol)
                .map_or(Transport::Other(protocol), |known| Transport::Port(known, destination)),
            ruleset::Transport::NeighbourDiscovery => return "denied".to_owned(),
            ruleset::Transport::Other(protocol) => Transport::Other(protocol),
        };
        let verdict =
            eval(&self.snapshot, &Packet { from: party(connection.from), to: party(connection.to), transport });
        match direction {
            Direction::Ingress => because(&verdict.ingress.outcome),
            Direction::Egress => because(&verdict.egress.outcome),
        }
    }

    fn pod_at(&self, address: IpAddr) -> Option<PodId> {
        self.endpoints.values().find(|endpoint| endpoint.addresses.contains(&address)).map(|e| e.pod.clone())
    }
}

fn because(outcome: &Outcome) -> String {
    match outcome {
        Outcome::DeniedBy(rule) => format!("denied by rule {} of {}", rule.rule, rule.policy),
        Outcome::IsolatedBy(policies) => {
            let names: Vec<_> = policies.iter().map(ToString::to_string).collect();
            format!("isolated by {}", names.join(", "))
        }
        Outcome::UnknownPod => "denied: the API server has not told of the pod".to_owned(),
        // The table that is in force is a moment older than what the evaluator has been told.
        Outcome::NoEndpoint | Outcome::Unrestricted | Outcome::AllowedBy(_) => "denied".to_owned(),
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
    let (clears, left) = channel::<Clear>();
    let answers = to.clone();
    thread::Builder::new().name("clears".to_owned()).spawn(move || {
        left.iter().all(|Clear { who, addresses }| {
            let result = addresses.into_iter().map(|address| clearing.clear(address)).sum();
            answers.send(Cleared { who, result }.into()).is_ok()
        })
    })?;
    Ok(Queues { reviews, clears })
}
