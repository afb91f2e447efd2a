//! The unix socket on which the CNI plugin asks the agent: one request per connection, one JSON object per line each way.

use std::{fs::Permissions, io, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc::UnboundedSender, oneshot},
    time::timeout,
};
use towpath_local::{Reply, Request};
use tracing::{debug, warn};

/// The longest request in bytes. An endpoint with two addresses takes about 500.
const MAX_REQUEST: u64 = 64 * 1024;
/// How long a connection may take to say what it wants.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// A request with the way back. A dropped `reply` closes the connection without an answer.
#[derive(Debug)]
pub struct CniRequest {
    /// What the plugin asks.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// Makes the socket, readable by root only. A socket that an earlier process left is replaced.
///
/// # Errors
/// If the directory cannot be made or the socket cannot be bound.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the receiver is gone.
pub async fn serve<T: From<CniRequest> + Send + 'static>(listener: UnixListener, to: UnboundedSender<T>) {
    while !to.is_closed() {
        match listener.accept().await {
            Ok((stream, _)) => {
                let to = to.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &to).await {
                        debug!(%error, "CNI request went unanswered");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: give those that are open time to end.
                warn!(%error, "connection to the CNI socket not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer<T: From<CniRequest>>(stream: UnixStream, to: &UnboundedSender<T>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    timeout(READ_TIMEOUT, BufReader::new(read.take(MAX_REQUEST)).read_line(&mut line)).await??;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => {
            let (reply, answer) = oneshot::channel();
            if to.send(CniRequest { request, reply }.into()).is_err() {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            answer.await.map_err(io::Error::other)?
        }
        Err(error) => Reply::error(
            6,
            "request to the Towpath agent not understood; plugin and agent are of different versions",
            &error.to_string(),
        ),
    };
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    write.write_all(&line).await
}
