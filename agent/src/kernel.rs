//! The one thread that touches the kernel, and the threads that listen to it.
//!
//! The daemon sends a [`Job`] and goes on folding events; the thread answers with a [`Done`]. One job at a time: what a
//! change is computed from is what the kernel had when it was computed.

use std::{
    error::Error,
    io,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::UnboundedSender;
use towpath_core::{
    overlay::{self, Kernel, NetOp},
    ruleset::{Installed, Transaction},
};
use towpath_dataplane::{
    net::{ApplyError, Net, NetListener, ReadBackError},
    nft::{Nft, NftError, NftEvents, TableChange},
};
use towpath_local::{Endpoints, Listing, LocalError};

/// What is read back: each part for itself, because reading costs in proportion to its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Links, addresses, neighbours, forwarding entries, routes, sysctls; and the pods' endpoint files.
    Net,
    /// Our table.
    Table,
}

/// A change of the kernel's state: rules first, then the rest, so that no route leads where no rule guards.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// What happens to our table, at once or not at all.
    pub table: Transaction,
    /// What happens to the rest, in this order, each for itself.
    pub net: Vec<NetOp>,
}

impl Change {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty() && self.net.is_empty()
    }
}

/// What the thread is to do.
#[derive(Debug)]
pub enum Job {
    /// Read a part back.
    Read(Part),
    /// Change it.
    Apply(Change),
    /// Say whether this was somebody else's doing. Answered with a [`Notice`] if so.
    Heard(TableChange),
}

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Over route netlink.
    #[error("read links, routes and neighbours back")]
    Net(#[from] ReadBackError),
    /// Through nft.
    #[error("read our table back")]
    Nft(#[from] NftError),
    /// The endpoint files.
    #[error("list the pods of this node")]
    Endpoints(#[from] LocalError),
}

/// How a change went.
#[derive(Debug)]
pub struct Applied {
    /// The table's part.
    pub table: Result<(), NftError>,
    /// The operations that failed; the others were done.
    pub failed: Vec<ApplyError>,
    /// How long all of it took.
    pub took: Duration,
}

impl Applied {
    /// Whether everything was done.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.table.is_ok() && self.failed.is_empty()
    }
}

/// The answer to a [`Job`].
#[derive(Debug)]
pub enum Done {
    /// To [`Job::Read`] of [`Part::Net`].
    Net(Result<(Box<Kernel>, Listing), ReadError>),
    /// To [`Job::Read`] of [`Part::Table`]; `None` when there is no table.
    Table(Result<Option<Box<Installed>>, ReadError>),
    /// To [`Job::Apply`].
    Applied(Applied),
}

/// What the kernel tells of its own accord.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Links, addresses, routes or neighbours changed, perhaps by our own hand.
    Net(Vec<overlay::NetNotification>),
    /// Somebody else changed our table.
    Table,
}

/// The kernel, as the thread reaches it.
#[derive(Debug)]
pub struct Reach<N, F> {
    /// Route netlink.
    pub net: N,
    /// Our table.
    pub nft: F,
    /// The endpoint files.
    pub endpoints: Endpoints,
}

impl<N: Net, F: Nft> Reach<N, F> {
    /// Reads a part back.
    pub fn read(&mut self, part: Part) -> Done {
        match part {
            Part::Net => Done::Net(self.read_net()),
            Part::Table => Done::Table(self.nft.read_back().map(|have| have.map(Box::new)).map_err(Into::into)),
        }
    }

    fn read_net(&mut self) -> Result<(Box<Kernel>, Listing), ReadError> {
        // The files first: a pod that is added in between is then without a file, which only means that it is not
        // known yet, and its own request will tell.
        let listing = self.endpoints.list()?;
        Ok((Box::new(self.net.read_back()?), listing))
    }

    /// Changes the kernel. When the table is refused nothing else is done: routes must not lead past missing rules.
    pub fn apply(&mut self, change: &Change) -> Applied {
        let start = Instant::now();
        let table = self.nft.apply(&change.table);
        let failed = if table.is_ok() { self.net.apply(&change.net) } else { Vec::new() };
        Applied { table, failed, took: start.elapsed() }
    }

    fn work<T: From<Done> + From<Notice>>(&mut self, queue: &Receiver<Job>, to: &UnboundedSender<T>) {
        while let Ok(job) = queue.recv() {
            let input = match job {
                Job::Read(part) => self.read(part).into(),
                Job::Apply(change) => Done::Applied(self.apply(&change)).into(),
                Job::Heard(change) if self.nft.is_own(&change) => continue,
                Job::Heard(_) => Notice::Table.into(),
            };
            if to.send(input).is_err() {
                return;
            }
        }
    }
}

/// Starts the thread. It ends when the last sender of jobs is gone.
///
/// # Errors
/// If the thread cannot be started.
pub fn spawn<N, F, T>(mut reach: Reach<N, F>, to: UnboundedSender<T>) -> io::Result<Sender<Job>>
where
    N: Net + Send + 'static,
    F: Nft + Send + 'static,
    T: From<Done> + From<Notice> + Send + 'static,
{
    let (jobs, queue) = channel();
    thread::Builder::new().name("kernel".to_owned()).spawn(move || reach.work(&queue, &to))?;
    Ok(jobs)
}

/// Forwards notifications about links, addresses, routes and neighbours, until nobody receives them any more.
pub async fn listen_net<T: From<Notice>>(mut listener: NetListener, to: UnboundedSender<T>) {
    loop {
        match listener.recv().await.map(|notices| to.send(Notice::Net(notices).into()).is_ok()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return log_end(&error),
        }
    }
}

/// Starts the thread that tells the kernel's thread of changes of our table.
///
/// # Errors
/// If the thread cannot be started.
pub fn listen_table(mut events: NftEvents, jobs: Sender<Job>) -> io::Result<()> {
    listen("table-events", move || events.next_change().map(|change| jobs.send(Job::Heard(change)).is_ok()))
}

/// Forwards until nobody listens any more.
fn listen<E: Error + 'static>(
    name: &str,
    mut forward: impl FnMut() -> Result<bool, E> + Send + 'static,
) -> io::Result<()> {
    let listen = move || {
        loop {
            match forward() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return log_end(&error),
            }
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(listen).map(drop)
}

fn log_end(error: &(dyn Error + 'static)) {
    tracing::error!(error, "kernel notifications ended; repairs wait for the timer");
}
