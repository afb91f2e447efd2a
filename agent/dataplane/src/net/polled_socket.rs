//! The socket under rtnetlink's connection where no runtime is: its owner waits for it with poll(2).

use std::{
    io,
    os::fd::AsFd,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::BufMut;
use netlink_sys::{AsyncSocket, Socket, SocketAddr};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use towpath_podlink::netlink::NetlinkError;

/// A netlink socket that does not block and wakes nobody. A task that finds it [`Poll::Pending`] is polled again after
/// [`PolledSocket::wait`].
#[derive(Debug)]
pub(crate) struct PolledSocket(Socket);

impl PolledSocket {
    /// Waits until there is something to receive. The kernel takes every request within the system call that sends it,
    /// so that nothing ever waits for room to send.
    ///
    /// # Errors
    /// [`NetlinkError::Timeout`] after `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> Result<(), NetlinkError> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Milliseconds, rounded up: less than one is not none.
            let left = PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], left) {
                Ok(0) => return Err(NetlinkError::Timeout),
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(NetlinkError::Socket { step: "wait", source: e.into() }),
            }
        }
    }
}

impl AsyncSocket for PolledSocket {
    fn socket_ref(&self) -> &Socket {
        &self.0
    }

    fn socket_mut(&mut self) -> &mut Socket {
        &mut self.0
    }

    fn new(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    fn poll_send(&self, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        pending_if_it_would_block(self.0.send(bytes, 0))
    }

    fn poll_send_to(&self, _: &mut Context<'_>, bytes: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        pending_if_it_would_block(self.0.send_to(bytes, to, 0))
    }

    fn poll_recv<B: BufMut>(&self, _: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<()>> {
        pending_if_it_would_block(self.0.recv(buffer, 0).map(drop))
    }

    fn poll_recv_from<B: BufMut>(&self, _: &mut Context<'_>, buffer: &mut B) -> Poll<io::Result<SocketAddr>> {
        pending_if_it_would_block(self.0.recv_from(buffer, 0).map(|(_, from)| from))
    }

    fn poll_recv_from_full(&self, _: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        pending_if_it_would_block(self.0.recv_from_full())
    }
}

fn pending_if_it_would_block<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}
