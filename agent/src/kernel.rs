//! The thread that writes to the kernel, and the threads that listen to it.
//!
//! The daemon sends a [`Job`] and goes on; the thread answers with a [`KernelResult`]. One kernel job at a time: what a
//! change is computed from is what the kernel has when it is applied.

use std::{
    error::Error,
    io,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Instant,
};

use tokio::sync::mpsc::UnboundedSender;
use towpath_dataplane::{
    net::{Net, NetListener, ReadBackError},
    nft::{Nft, NftEvents, TableChange},
};
use towpath_local::{Endpoints, LocalError};
use towpath_node::{
    ApplyResult, FailedOps, Input, KernelChange, KernelJob, KernelNotification, KernelPart, KernelResult, LocalPod,
    NetworkReadBack,
};
use tracing::{error, warn};

use crate::{error_text::with_causes, input::Arrival, local_pod::local_pod};

/// Work for the kernel thread.
#[derive(Debug)]
pub enum Job {
    /// Execute, and send the result.
    Execute(KernelJob),
    /// Find out whether another process made a change of our table, and send a notification if so.
    Attribute(TableChange),
}

/// The network could not be read back.
#[derive(Debug, thiserror::Error)]
enum NetworkReadError {
    #[error("read back links, routes and neighbours")]
    Net(#[from] ReadBackError),
    #[error("list the pods of this node")]
    Endpoints(#[from] LocalError),
}

/// The handles of the kernel thread.
#[derive(Debug)]
pub struct KernelHandles<N, F> {
    /// Links, addresses, routes, neighbours and FDB entries, over route netlink.
    pub net: N,
    /// Our table, over nf_tables netlink.
    pub nft: F,
    /// The endpoint files of this node's pods.
    pub endpoints: Endpoints,
}

impl<N: Net, F: Nft> KernelHandles<N, F> {
    /// Reads a part back.
    pub fn read(&mut self, part: KernelPart) -> KernelResult {
        match part {
            KernelPart::Network => KernelResult::Network(self.read_network().map_err(|error| with_causes(&error))),
            KernelPart::Table => {
                let table = self.nft.read_back().map(|have| have.map(Box::new));
                KernelResult::Table(table.map_err(|error| format!("read back our table: {}", with_causes(&error))))
            }
        }
    }

    fn read_network(&mut self) -> Result<NetworkReadBack, NetworkReadError> {
        // The files first: a pod that is added in between has no file here, but sends its own request.
        let pods = self.pods()?;
        Ok(NetworkReadBack { kernel: Box::new(self.net.read_back()?), pods })
    }

    /// The pods of this node, by their endpoint files.
    ///
    /// # Errors
    /// If the folder cannot be read. A damaged file is logged and skipped.
    pub fn pods(&self) -> Result<Vec<LocalPod>, LocalError> {
        let listing = self.endpoints.list()?;
        for error in &listing.damaged {
            warn!(error = with_causes(error), "endpoint file skipped; its pod has no rules: delete the pod");
        }
        Ok(listing.endpoints.iter().filter_map(|file| local_pod(file).ok()).collect())
    }

    /// Changes the kernel. When the table is rejected nothing else is done: no route must lead to a pod without rules.
    pub fn apply(&mut self, change: &KernelChange) -> ApplyResult {
        let start = Instant::now();
        let table = self.nft.apply(&change.table).map_err(|error| with_causes(&error));
        let failed = if table.is_ok() { self.net.apply(&change.network) } else { Vec::new() };
        let network = match failed.first() {
            None => Ok(()),
            Some(first) => Err(FailedOps { count: failed.len(), first: with_causes(first) }),
        };
        ApplyResult { table, network, took: start.elapsed() }
    }

    fn work(&mut self, queue: &Receiver<Job>, to: &UnboundedSender<Arrival>) {
        while let Ok(job) = queue.recv() {
            let input = match job {
                Job::Execute(KernelJob::Read(part)) => Input::Kernel(self.read(part)),
                Job::Execute(KernelJob::Apply(change)) => Input::Kernel(KernelResult::Applied(self.apply(&change))),
                Job::Attribute(change) if self.nft.is_own(&change) => continue,
                Job::Attribute(_) => Input::Notification(KernelNotification::Table),
            };
            if to.send(Arrival::Input(input)).is_err() {
                return;
            }
        }
    }
}

/// Starts the kernel thread. It ends when the last sender of jobs is dropped.
///
/// # Errors
/// If the thread cannot be started.
pub fn spawn<N, F>(mut handles: KernelHandles<N, F>, to: UnboundedSender<Arrival>) -> io::Result<Sender<Job>>
where
    N: Net + Send + 'static,
    F: Nft + Send + 'static,
{
    let (jobs, queue) = channel();
    thread::Builder::new().name("kernel".to_owned()).spawn(move || handles.work(&queue, &to))?;
    Ok(jobs)
}

/// Forwards changes of links, addresses, routes and neighbours, until nobody receives them any more.
pub async fn listen_net(mut listener: NetListener, to: UnboundedSender<Arrival>) {
    let notify = |changes| Arrival::Input(Input::Notification(KernelNotification::Network(changes)));
    loop {
        match listener.recv().await.map(|changes| to.send(notify(changes)).is_ok()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(failed) => return log_end(&failed),
        }
    }
}

/// Starts the listener for changes of our table. The kernel thread decides which are our own.
///
/// # Errors
/// If the thread cannot be started.
pub fn listen_table(mut events: NftEvents, jobs: Sender<Job>) -> io::Result<()> {
    let listen = move || {
        loop {
            match events.next_change().map(|change| jobs.send(Job::Attribute(change)).is_ok()) {
                Ok(true) => {}
                Ok(false) => return,
                Err(failed) => return log_end(&failed),
            }
        }
    };
    thread::Builder::new().name("table-events".to_owned()).spawn(listen).map(drop)
}

fn log_end(failed: &dyn Error) {
    error!(error = with_causes(failed), "kernel notifications ended; drift is repaired at the next resync only");
}
