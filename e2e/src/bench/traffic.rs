//! Traffic that runs while something else happens, and what became of it: pings, a TCP stream, new TCP connections, and
//! datagrams that a policy forbids. Each ends with its value.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{self, TcpListener, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use towpath_e2e::run;
use towpath_e2e::wait::wait_for;

use crate::namespaces::Namespaces;

const STREAM_PORT: u16 = 9300;
const HANDSHAKE_PORT: u16 = 9301;
const DATAGRAM_PORT: u16 = 9302;
/// Time for a connection to be made. A first packet that is lost is sent again after a second.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection that takes as long has lost its first packet.
const SLOW: Duration = Duration::from_millis(900);
/// So that a thread sees the end when nothing arrives any more.
const POLL: Duration = Duration::from_millis(100);

/// Pings that were sent, answered, and the longest time without an answer.
pub(crate) struct Answered {
    pub(crate) sent: usize,
    pub(crate) lost: usize,
    pub(crate) longest_gap: Duration,
}

/// A running `ping`.
pub(crate) struct Ping {
    child: Child,
    reader: Option<JoinHandle<Answered>>,
}

impl Ping {
    /// Time between two pings.
    pub(crate) const PACE: Duration = Duration::from_millis(10);

    pub(crate) fn start(from: &Namespaces, address: &str) -> Result<Self> {
        let mut command = Command::new("ping");
        command.args(["-n", "-i", &Self::PACE.as_secs_f64().to_string(), address]).stdout(Stdio::piped());
        let mut child = from.run(|| command.spawn().context("start ping"))?;
        let output = child.stdout.take().context("ping has no output")?;
        let reader = thread::spawn(move || Answered::read(BufReader::new(output)));
        Ok(Self { child, reader: Some(reader) })
    }

    pub(crate) fn finish(&mut self) -> Result<Answered> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT).context("end ping")?;
        self.child.wait().context("wait for ping")?;
        let reader = self.reader.take().context("ping has ended already")?;
        reader.join().map_err(|_| anyhow!("the reader of ping panicked"))
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Answered {
    /// Reads the answers up to the end. What was sent after the last answer is not counted: its answer may be under
    /// way.
    fn read(output: impl BufRead) -> Self {
        let (mut answered, mut last, mut longest_gap) = (BTreeSet::new(), Instant::now(), Duration::ZERO);
        for number in output.lines().map_while(Result::ok).filter_map(|line| sequence(&line)) {
            answered.insert(number);
            longest_gap = longest_gap.max(last.elapsed());
            last = Instant::now();
        }
        let sent = answered.last().copied().unwrap_or_default();
        Self { sent, lost: sent - answered.len(), longest_gap }
    }
}

/// Number of the ping that a line of ping's output is the answer to.
fn sequence(line: &str) -> Option<usize> {
    let (_, after) = line.split_once("bytes from")?.1.split_once("icmp_seq=")?;
    after.split(' ').next()?.parse().ok()
}

/// How a TCP stream ended, and the longest time in which nothing arrived.
pub(crate) struct Streamed {
    pub(crate) state: String,
    pub(crate) longest_gap: Duration,
}

/// A TCP connection that carries a number every few milliseconds.
pub(crate) struct TcpStream {
    client: Namespaces,
    stop: Arc<AtomicBool>,
    sender: Option<JoinHandle<Result<u64>>>,
    receiver: Option<JoinHandle<(u64, Duration)>>,
}

impl TcpStream {
    /// Time between two numbers.
    const PACE: Duration = Duration::from_millis(5);

    pub(crate) fn start(client: Namespaces, server: &Namespaces, address: &str) -> Result<Self> {
        let listener = server.run(|| TcpListener::bind(("0.0.0.0", STREAM_PORT)).context("listen for the stream"))?;
        let to = format!("{address}:{STREAM_PORT}").parse().context("the server's address")?;
        let near = client.run(|| net::TcpStream::connect_timeout(&to, CONNECT).context("open the stream"))?;
        near.set_nodelay(true).context("send at once")?;
        near.set_write_timeout(Some(CONNECT)).context("bound a write")?;
        let (far, _) = listener.accept().context("accept the stream")?;
        let stop = Arc::new(AtomicBool::new(false));
        let sending = Arc::clone(&stop);
        let sender = thread::spawn(move || send_numbers(near, &sending));
        let receiver = thread::spawn(move || receive_numbers(far));
        Ok(Self { client, stop, sender: Some(sender), receiver: Some(receiver) })
    }

    /// Closes the stream, and reports whether everything that was sent has arrived.
    pub(crate) fn finish(&mut self) -> Result<Streamed> {
        let sockets = self.client.run(|| {
            let filter = format!("dport = :{STREAM_PORT}");
            run::output(Command::new("ss").args(["-tinH", &filter]))
        })?;
        self.stop.store(true, Ordering::Relaxed);
        let sender = self.sender.take().context("the stream has ended already")?;
        let sent = sender.join().map_err(|_| anyhow!("the stream's sender panicked"))?;
        let receiver = self.receiver.take().context("the stream has ended already")?;
        let (received, longest_gap) = receiver.join().map_err(|_| anyhow!("the stream's receiver panicked"))?;
        let state = match sent {
            Ok(sent) if sent == received => format!("whole, {sent} numbers, {}", retransmitted(&sockets)),
            Ok(sent) => format!("{received} of {sent} numbers arrived"),
            Err(error) => format!("broken after {received} numbers: {error:#}"),
        };
        Ok(Streamed { state, longest_gap })
    }
}

impl Drop for TcpStream {
    fn drop(&mut self) {
        // The sender closes the connection, and its end is the receiver's.
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn send_numbers(mut stream: net::TcpStream, stop: &AtomicBool) -> Result<u64> {
    let mut number = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&number.to_be_bytes()).context("write")?;
        number += 1;
        // The pace of the numbers, not a wait for something.
        thread::sleep(TcpStream::PACE);
    }
    Ok(number)
}

/// Returns how many numbers arrived, and the longest time between two of them.
fn receive_numbers(mut stream: net::TcpStream) -> (u64, Duration) {
    let (mut bytes, mut count, mut last, mut longest) = ([0; 8], 0, Instant::now(), Duration::ZERO);
    while stream.read_exact(&mut bytes).is_ok() {
        longest = longest.max(last.elapsed());
        (count, last) = (count + 1, Instant::now());
    }
    (count, longest)
}

/// Retransmissions in the output of `ss -ti`: `retrans:0/3` means three so far, `dsack_dups:2` that the receiver had
/// two of them already, so that they were late and not lost. A field that is missing means none.
fn retransmitted(sockets: &str) -> String {
    let field = |name: &str| sockets.split_whitespace().find_map(|field| field.strip_prefix(name));
    let total = field("retrans:").and_then(|counts| counts.split_once('/')).map_or("0", |(_, total)| total);
    format!("{total} segments retransmitted, {} of them late", field("dsack_dups:").unwrap_or("0"))
}

/// New TCP connections, one after the other.
pub(crate) struct Handshakes {
    stop: Arc<AtomicBool>,
    caller: Option<JoinHandle<Result<String>>>,
}

impl Handshakes {
    /// Time between the beginnings of two connections.
    pub(crate) const PACE: Duration = Duration::from_millis(20);

    pub(crate) fn start(client: Namespaces, server: &Namespaces, address: &str) -> Result<Self> {
        let listener =
            server.run(|| TcpListener::bind(("0.0.0.0", HANDSHAKE_PORT)).context("listen for connections"))?;
        let to = format!("{address}:{HANDSHAKE_PORT}").parse().context("the server's address")?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (accepting, calling) = (Arc::clone(&stop), Arc::clone(&stop));
        thread::spawn(move || accept(&listener, &accepting));
        let caller = thread::spawn(move || {
            client.enter()?;
            Ok(connect_again_and_again(to, &calling))
        });
        Ok(Self { stop, caller: Some(caller) })
    }

    pub(crate) fn finish(&mut self) -> Result<String> {
        self.stop.store(true, Ordering::Relaxed);
        let caller = self.caller.take().context("the connections have ended already")?;
        caller.join().map_err(|_| anyhow!("the thread of the connections panicked"))?
    }
}

impl Drop for Handshakes {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn accept(listener: &TcpListener, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if listener.accept().is_err() {
            // Nobody connects: the pace of looking, not a wait for something.
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn connect_again_and_again(to: net::SocketAddr, stop: &AtomicBool) -> String {
    let (mut count, mut failed, mut slow) = (0, 0, 0);
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        count += 1;
        match net::TcpStream::connect_timeout(&to, CONNECT) {
            Ok(_) => slow += usize::from(start.elapsed() >= SLOW),
            Err(_) => failed += 1,
        }
        // The pace of the connections, not a wait for something.
        thread::sleep(Handshakes::PACE.saturating_sub(start.elapsed()));
    }
    format!("{failed} of {count}, {slow} lost their first packet")
}

/// Datagrams that a policy forbids. Nobody answers, so policies apply to each of them.
pub(crate) struct Datagrams {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    arrived: Arc<AtomicU64>,
    /// How many had arrived when the policy was in force.
    before: AtomicU64,
}

impl Datagrams {
    pub(crate) fn start(from: &Namespaces, to: &Namespaces, address: &str) -> Result<Self> {
        let receiver = to.run(|| UdpSocket::bind(("0.0.0.0", DATAGRAM_PORT)).context("listen for datagrams"))?;
        receiver.set_read_timeout(Some(POLL))?;
        let sender = from.run(|| UdpSocket::bind("0.0.0.0:0").context("open a socket for datagrams"))?;
        from.run(|| sender.connect((address, DATAGRAM_PORT)).context("find the route to the server"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (sent, arrived) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&sent));
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // A policy may reject it: that is what is counted.
                let _ = sender.send(b"?");
                counted.fetch_add(1, Ordering::Relaxed);
                // The pace of the datagrams, not a wait for something.
                thread::sleep(Ping::PACE);
            }
        });
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&arrived));
        thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                counted.fetch_add(u64::from(receiver.recv(&mut [0; 1]).is_ok()), Ordering::Relaxed);
            }
        });
        Ok(Self { stop, sent, arrived, before: AtomicU64::new(0) })
    }

    /// Waits until 100 in a row did not arrive.
    pub(crate) fn wait_closed(&self) -> Result<()> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (mut arrived, mut since) = (load(&self.arrived), load(&self.sent));
        wait_for("the policy to be in force", Duration::from_secs(30), || {
            if load(&self.arrived) != arrived {
                (arrived, since) = (load(&self.arrived), load(&self.sent));
            }
            Ok((load(&self.sent) >= since + 100).then_some(()))
        })?;
        self.before.store(arrived, Ordering::Relaxed);
        Ok(())
    }

    /// How many arrived since the policy was in force, of how many that were sent in all.
    pub(crate) fn finish(&self) -> String {
        self.stop.store(true, Ordering::Relaxed);
        let arrived = self.arrived.load(Ordering::Relaxed) - self.before.load(Ordering::Relaxed);
        format!("{arrived} of {}", self.sent.load(Ordering::Relaxed))
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_that_was_not_answered_is_counted_as_lost() {
        let output = "PING 10.244.1.3 (10.244.1.3) 56(84) bytes of data.\n\
                      64 bytes from 10.244.1.3: icmp_seq=1 ttl=62 time=0.051 ms\n\
                      64 bytes from 10.244.1.3: icmp_seq=4 ttl=62 time=0.048 ms\n";
        let answered = Answered::read(output.as_bytes());
        assert_eq!((answered.sent, answered.lost), (4, 2), "numbers 2 and 3");
    }

    #[test]
    fn ss_prints_retransmissions_only_where_there_are_some() {
        let line = "ESTAB 0 0 10.244.0.3:5 10.244.1.3:9300\n\t cubic rto:204 rtt:0.1/0.05";
        for (fields, want) in [
            ("retrans:0/3 dsack_dups:2 send 1Gbps", "3 segments retransmitted, 2 of them late"),
            ("retrans:0/1 send 1Gbps", "1 segments retransmitted, 0 of them late"),
            ("send 1Gbps", "0 segments retransmitted, 0 of them late"),
        ] {
            assert_eq!(retransmitted(&format!("{line} {fields}")), want);
        }
    }
}
