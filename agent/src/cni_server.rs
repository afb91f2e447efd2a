//! The unix socket of the CNI plugin: one request per connection, one JSON object per line each way.

use std::{collections::BTreeMap, fs::Permissions, io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc::UnboundedSender, oneshot},
    time::timeout,
};
use towpath_local::Reply;
use towpath_node::{CniReply, CniRequest, Input, Ticket};
use tracing::{debug, warn};

use crate::{
    input::Arrival,
    local_pod::{cni_reply, cni_request},
};

/// The longest request in bytes. An endpoint with two addresses takes about 500.
const MAX_REQUEST: u64 = 64 * 1024;
/// How long a client may take to send its request.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The requests that the node has not answered yet, by their tickets. One task owns it.
#[derive(Debug, Default)]
pub struct PendingRequests {
    last: u64,
    senders: BTreeMap<Ticket, oneshot::Sender<Reply>>,
}

impl PendingRequests {
    /// Takes a request in, under a ticket of its own.
    pub fn register(&mut self, request: CniRequest, sender: oneshot::Sender<Reply>) -> Input {
        self.last += 1;
        let ticket = Ticket(self.last);
        self.senders.insert(ticket, sender);
        Input::Cni(ticket, request)
    }

    /// Answers a request. A plugin that has disconnected undoes its work itself.
    pub fn reply(&mut self, ticket: Ticket, reply: CniReply) {
        if let Some(sender) = self.senders.remove(&ticket) {
            drop(sender.send(cni_reply(reply)));
        }
    }
}

/// Binds the socket, accessible to root only. It replaces the socket of an earlier process.
///
/// # Errors
/// If the directory cannot be created or the socket cannot be bound.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the daemon ends.
pub async fn serve(listener: UnixListener, to: UnboundedSender<Arrival>) {
    while !to.is_closed() {
        match listener.accept().await {
            Ok((stream, _)) => {
                let to = to.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &to).await {
                        debug!(%error, "CNI request not answered");
                    }
                });
            }
            Err(error) => {
                // Most likely out of file descriptors: open connections get time to end.
                warn!(%error, "connection to the CNI socket not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, to: &UnboundedSender<Arrival>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    timeout(READ_TIMEOUT, BufReader::new(read.take(MAX_REQUEST)).read_line(&mut line)).await??;
    let reply = match serde_json::from_str(&line).map(cni_request) {
        Ok(Ok(request)) => {
            let (sender, reply) = oneshot::channel();
            if to.send(Arrival::Cni(request, sender)).is_err() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            reply.await.map_err(io::Error::other)?
        }
        Ok(Err(reply)) => reply,
        Err(error) => Reply::error(
            6,
            "the Towpath agent cannot decode the request: plugin and agent are of different versions",
            &error.to_string(),
        ),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}

#[cfg(test)]
mod tests {
    use towpath_node::CniCode;

    use super::*;

    #[test]
    fn each_request_gets_the_reply_to_its_own_ticket() {
        let mut pending = PendingRequests::default();
        let (sender, mut first) = oneshot::channel();
        let Input::Cni(ticket, CniRequest::Status) = pending.register(CniRequest::Status, sender) else {
            panic!("the request comes out as it went in")
        };
        let (sender, mut second) = oneshot::channel();
        let Input::Cni(other, _) = pending.register(CniRequest::Status, sender) else { panic!("a request") };
        let message = "not now";
        let details = String::new();
        pending.reply(other, CniReply::Error { code: CniCode::NotAvailable, message, details });
        assert!(first.try_recv().is_err(), "not answered yet");
        assert_eq!(second.try_recv().unwrap(), Reply::error(50, message, ""));
        pending.reply(ticket, CniReply::Ok);
        pending.reply(ticket, CniReply::Ok);
        assert_eq!(first.try_recv().unwrap(), Reply::Ok);
    }
}
