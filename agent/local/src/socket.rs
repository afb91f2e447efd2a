//! The socket protocol: one request of the CNI plugin and one reply of the agent per connection, each a JSON object on a
//! line.

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

/// The limit of a reply in bytes, with its newline.
const MAX_LINE_BYTES: usize = 64 * 1024;

/// A request of the plugin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "camelCase")]
pub enum Request {
    /// Put the policy rules of a new pod interface in force. `Ok` means that the kernel has them.
    Add {
        /// The interface; its endpoint file is written already.
        endpoint: EndpointFile,
    },
    /// A pod's interface and its endpoint file were removed. The plugin does not wait for the reply, and the agent may miss
    /// the request: it finds the same out from the directory of endpoint files.
    Del {
        /// The container's id.
        #[serde(rename = "containerID")]
        container_id: String,
        /// The interface's name in the pod.
        ifname: String,
    },
    /// Ask whether pods can be added: the overlay device and the policy rules are in force.
    Status,
}

/// A reply of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Reply {
    /// Done, or pods can be added.
    Ok,
    /// An error, which the plugin passes on to the runtime.
    Error {
        /// The error code (CNI specification, "Error"): 11 try again later, 50 containers cannot be added, 51 and existing
        /// ones may have limited connectivity, 100 and above our own.
        code: u32,
        /// The error in one line.
        msg: String,
        /// Further details; may be empty.
        details: String,
    },
}

impl Reply {
    /// An error reply.
    #[must_use]
    pub fn error(code: u32, msg: &str, details: &str) -> Self {
        Self::Error { code, msg: msg.to_owned(), details: details.to_owned() }
    }
}

/// A request to the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No process listens on the socket.
    #[error("the agent on this node does not listen on {}; see the towpath-agent pod of this node", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// No reply in time, or the agent ended before it.
    #[error("the agent on this node did not answer on {} within {limit:?}", path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// The time limit.
        limit: Duration,
        /// The error of the system call.
        source: io::Error,
    },
    /// The reply could not be decoded.
    #[error("the reply of the agent on this node, on {}, cannot be decoded; agent and plugin may be of different versions", path.display())]
    Reply {
        /// The socket.
        path: PathBuf,
        /// The decoding error.
        source: serde_json::Error,
    },
}

/// Sends a request to the agent and waits for its reply, `limit` at most in total.
///
/// # Errors
/// If the agent does not run, does not reply in time, or its reply cannot be decoded.
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

/// Sends a request to the agent and does not wait for its reply.
///
/// # Errors
/// If the agent does not run, or does not take the request within `limit`.
pub fn notify(paths: &Paths, request: &Request, limit: Duration) -> Result<(), AskError> {
    let path = paths.socket();
    let sent = connect_within(&path, limit).and_then(|mut stream| stream.write_all(&line_of(request)));
    sent.map_err(|source| AskError::Connect { path, source })
}

fn line_of(request: &Request) -> Vec<u8> {
    // It consists of strings and lists, which cannot fail to encode.
    let mut line = serde_json::to_vec(request).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A connect with a time limit, which the standard library lacks: a stopped agent accepts no connection, and once its
/// backlog is full a connect waits (unix(7)). The send timeout limits it.
fn connect_within(path: &std::path::Path, limit: Duration) -> io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::SendTimeout, &timeval(limit))?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(UnixStream::from(fd))
}

/// A limit of more than 24 days becomes that.
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
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply exceeds the limit of 64 KiB"));
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
            // The client may have closed the connection, which the test asserts.
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
        let (_dir, absent) = paths();
        assert!(matches!(ask(&absent, &Request::Status, LIMIT), Err(AskError::Connect { .. })), "no socket");
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
