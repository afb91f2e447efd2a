//! What the CNI plugin asks the agent: one request and one reply per connection, each a JSON object on a line.

use std::{
    io::{self, Read, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
    time::{TimeVal, TimeValLike},
};
use serde::{Deserialize, Serialize};

use crate::{endpoint::EndpointFile, paths::Paths};

/// The longest reply in bytes, its newline included.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// What the plugin asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase")]
pub enum Request {
    /// Put the rules of a new pod interface in force. `Ok` only once the kernel has them.
    Add {
        /// The interface; its file is written already.
        endpoint: EndpointFile,
    },
    /// A pod's interface is gone, and its file too. The plugin does not wait for the reply, and the agent can miss the
    /// request: it finds the same out from the folder of endpoint files.
    Del {
        /// The container's id.
        #[serde(rename = "containerID")]
        container_id: String,
        /// The interface's name in the pod.
        ifname: String,
    },
    /// Can pods be added now: are the tunnel and the rules in force?
    Status,
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Reply {
    /// Done, or yes.
    Ok,
    /// Not done, or no; the plugin hands it on to the runtime.
    Error {
        /// An error code of CNI (specification, "Error"): 11 try again later, 50 cannot add containers, 51 and
        /// existing ones are cut off too, 100 and above our own.
        code: u32,
        /// One line for a person.
        msg: String,
        /// More of it; may be empty.
        details: String,
    },
}

impl Reply {
    /// An error.
    #[must_use]
    pub fn error(code: u32, msg: &str, details: &str) -> Self {
        Self::Error { code, msg: msg.to_owned(), details: details.to_owned() }
    }
}

/// The agent was not reached or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("the agent on this node does not listen on {}; see the towpath-agent pod of this node", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No answer in time, or the agent ended before it.
    #[error("the agent on this node did not answer on {} within {limit:?}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// How long it had.
        limit: Duration,
        /// Why.
        source: io::Error,
    },
    /// The agent said something that we do not understand.
    #[error("the agent on this node answered on {} what this plugin does not understand", path.display())]
    Reply {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Asks the agent and waits for its answer, `limit` at most for all of it.
///
/// # Errors
/// If the agent is away, silent or not understood.
pub fn ask(paths: &Paths, request: &Request, limit: Duration) -> Result<Reply, AskError> {
    let path = paths.socket();
    let deadline = Instant::now() + limit;
    let mut stream = match connect_within(&path, limit) {
        Ok(stream) => stream,
        Err(source) => return Err(AskError::Connect { path, source }),
    };
    match exchange(&mut stream, &line_of(request), deadline) {
        Ok(line) => serde_json::from_slice(&line).map_err(|source| AskError::Reply { path, source }),
        Err(source) => Err(AskError::Answer { path, limit, source }),
    }
}

/// Tells the agent something and does not wait for its answer.
///
/// # Errors
/// If the agent is away, or takes nothing for as long as `limit`.
pub fn tell(paths: &Paths, request: &Request, limit: Duration) -> Result<(), AskError> {
    let path = paths.socket();
    let sent = connect_within(&path, limit).and_then(|mut stream| stream.write_all(&line_of(request)));
    sent.map_err(|source| AskError::Connect { path, source })
}

fn line_of(request: &Request) -> Vec<u8> {
    // Only strings and lists in it: JSON has a form for all of them.
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Bounded, unlike the standard library's: an agent that is stopped accepts nobody, and once its queue is full a
/// connect waits (unix(7)); the limit for sending is one for this too.
fn connect_within(path: &std::path::Path, limit: Duration) -> io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::SendTimeout, &timeval(limit))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// Limits of more than 24 days become that: they are no limits.
fn timeval(limit: Duration) -> TimeVal {
    TimeVal::milliseconds(i32::try_from(limit.as_millis()).unwrap_or(i32::MAX).into())
}

fn exchange(stream: &mut UnixStream, request: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => line.extend_from_slice(&chunk[..n]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(e) => return Err(e),
        }
        if let Some(end) = line.iter().position(|b| *b == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() > MAX_LINE_BYTES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is longer than any answer"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    fn paths() -> (tempfile::TempDir, Paths) {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        (dir, paths)
    }

    /// An agent that takes one request, sends `answer` and hangs up.
    fn agent(paths: &Paths, answer: Vec<u8>) -> std::thread::JoinHandle<Vec<u8>> {
        let listener = UnixListener::bind(paths.socket()).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; MAX_LINE_BYTES];
            let n = stream.read(&mut request).unwrap();
            // The asker may have gone by now: that is its business, and asserted there.
            let _ = stream.write_all(&answer);
            request.truncate(n);
            request
        })
    }

    #[test]
    fn a_request_and_its_reply_cross_the_socket_whole() {
        let error = Reply::error(50, "not ready", "no tunnel");
        for reply in [Reply::Ok, error] {
            let (_dir, paths) = paths();
            let agent = agent(&paths, [serde_json::to_vec(&reply).unwrap(), b"\n".to_vec()].concat());
            let request = Request::Del { container_id: "c1".to_owned(), ifname: "eth0".to_owned() };
            assert_eq!(ask(&paths, &request, LIMIT).unwrap(), reply);
            assert_eq!(serde_json::from_slice::<Request>(&agent.join().unwrap()).unwrap(), request);
        }
    }

    #[test]
    fn an_agent_that_is_away_or_odd_is_an_error_and_never_a_hang() {
        let (_dir, away) = paths();
        assert!(matches!(ask(&away, &Request::Status, LIMIT), Err(AskError::Connect { .. })), "no socket");
        for (answer, why) in [
            (vec![], "it hangs up: the agent was killed"),
            (b"{\"result\":\"ok\"}".to_vec(), "it hangs up in the middle of a line"),
            (vec![b'x'; MAX_LINE_BYTES * 2], "a line without an end"),
        ] {
            let (_dir, paths) = paths();
            let agent = agent(&paths, answer);
            assert!(matches!(ask(&paths, &Request::Status, LIMIT), Err(AskError::Answer { .. })), "{why}");
            agent.join().unwrap();
        }
        let (_dir, paths) = paths();
        let agent = agent(&paths, b"{\"result\":\"perhaps\"}\n".to_vec());
        assert!(matches!(ask(&paths, &Request::Status, LIMIT), Err(AskError::Reply { .. })), "an unknown answer");
        agent.join().unwrap();
    }

    #[test]
    fn an_agent_that_is_silent_is_waited_for_no_longer_than_said() {
        let (_dir, paths) = paths();
        let listener = UnixListener::bind(paths.socket()).unwrap();
        let error = ask(&paths, &Request::Status, Duration::from_millis(50)).unwrap_err();
        let AskError::Answer { source, .. } = error else { panic!("{error}") };
        assert_eq!(source.kind(), io::ErrorKind::TimedOut);
        drop(listener);
    }
}
