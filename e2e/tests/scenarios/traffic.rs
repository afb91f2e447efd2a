//! Traffic from pods, and whether it arrives.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use towpath_e2e::run;
use towpath_e2e::wait::wait_for;

use crate::pods::Pod;

/// Time for an answer: a dropped packet gets none.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Time for a change of policies to be in force on every node.
const IN_FORCE: Duration = Duration::from_secs(15);

/// Whether a destination answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It answers.
    Open,
    /// Nothing came back.
    Closed,
    /// The connection was refused: the packet arrived where nobody listens, or at a Service without endpoints.
    Refused,
}

/// The protocol of a probe.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// One attempt and its expected result.
pub(crate) struct Probe<'a> {
    pub(crate) from: &'a Pod,
    pub(crate) to: SocketAddr,
    pub(crate) by: Protocol,
    pub(crate) want: Answer,
    pub(crate) why: &'static str,
}

/// Repeats all probes in parallel until each has its expected result.
pub(crate) fn expect(state: &str, probes: &[Probe<'_>]) -> Result<()> {
    let mut wrong = String::new();
    let settled = wait_for(state, IN_FORCE, || {
        let answers = thread::scope(|scope| {
            let tries: Vec<_> = probes.iter().map(|probe| scope.spawn(|| ask(probe))).collect();
            tries
                .into_iter()
                .map(|one| one.join().map_err(|_| anyhow!("a probe panicked"))?)
                .collect::<Result<Vec<_>>>()
        })?;
        let differs = probes.iter().zip(&answers).filter(|(probe, answer)| probe.want != **answer);
        let told = |(probe, answer): (&Probe<'_>, &Answer)| {
            format!("{} to {} by {:?} is {answer:?} ({}); ", probe.from.name, probe.to, probe.by, probe.why)
        };
        wrong = differs.map(told).collect();
        Ok(wrong.is_empty().then_some(()))
    });
    settled.with_context(|| wrong)
}

/// The same for one answer, which `ask` gives.
pub(crate) fn settle(state: &str, want: Answer, mut ask: impl FnMut() -> Result<Answer>) -> Result<()> {
    let mut last = None;
    let settled = wait_for(state, IN_FORCE, || {
        last = Some(ask()?);
        Ok((last == Some(want)).then_some(()))
    });
    settled.with_context(|| format!("the last answer was {last:?} and should be {want:?}"))
}

fn ask(probe: &Probe<'_>) -> Result<Answer> {
    match probe.by {
        Protocol::Tcp => tcp(probe.from, probe.to),
        Protocol::Udp => {
            Ok(if udp(probe.from, probe.to, "hostname")?.is_some() { Answer::Open } else { Answer::Closed })
        }
    }
}

/// Whether a TCP connection can be opened.
pub(crate) fn tcp(from: &Pod, to: SocketAddr) -> Result<Answer> {
    from.inside(|| connect(to)).with_context(|| format!("connect from {}", from.name))
}

/// The same from the network namespace of this thread.
pub(crate) fn connect(to: SocketAddr) -> Result<Answer> {
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(_) => Ok(Answer::Open),
        Err(error) if is_silence(error.kind()) => Ok(Answer::Closed),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(Answer::Refused),
        Err(error) => Err(error).with_context(|| format!("connect to {to}")),
    }
}

/// A dropped packet shows as a timeout, a missing route as unreachable.
fn is_silence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::TimedOut | ErrorKind::WouldBlock | ErrorKind::HostUnreachable)
}

/// The answer of a server to a request; none if nothing comes back.
pub(crate) fn udp(from: &Pod, to: SocketAddr, word: &str) -> Result<Option<String>> {
    from.inside(|| {
        let own: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(word.as_bytes())?;
        let mut answer = [0; 512];
        match socket.recv(&mut answer) {
            Ok(length) => Ok(answer.get(..length).map(|text| String::from_utf8_lossy(text).into_owned())),
            Err(error) if is_silence(error.kind()) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("ask {to} from {} over UDP", from.name)),
        }
    })
}

/// Body of the answer of an HTTP server.
pub(crate) fn http(from: &Pod, to: SocketAddr, path: &str) -> Result<String> {
    let answer = from.inside(|| {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE * 3)?;
        stream.set_read_timeout(Some(PATIENCE * 3))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let answer = answer.with_context(|| format!("get {path} of {to} from {}", from.name))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
    ensure!(head.contains(" 200 "), "{to}{path} answers {head}");
    Ok(body.to_owned())
}

/// The address under which a server sees a client.
pub(crate) fn seen_as(from: &Pod, to: SocketAddr) -> Result<IpAddr> {
    let seen: SocketAddr = http(from, to, "/clientip")?.parse().context("an address and port")?;
    Ok(seen.ip())
}

/// Pings with one packet at a time, each answered within a second.
pub(crate) fn ping(from: &Pod, to: IpAddr, words: &[&str]) -> Result<String> {
    let to = to.to_string();
    let mut all = vec!["ping", "-n", "-c", "3", "-i", "0.2", "-W", "1"];
    all.extend(words);
    all.push(&to);
    run::output(&mut from.command(&all)?).with_context(|| format!("ping from {} to {to}", from.name))
}

/// A ping of 50 packets per second that runs until it is stopped.
pub(crate) struct Stream {
    name: String,
    child: Child,
    answered: Arc<Mutex<BTreeSet<u32>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Stream {
    /// Answers per second.
    pub(crate) const PER_SECOND: usize = 50;

    /// Starts it, and waits for the first answers.
    pub(crate) fn start(from: &Pod, to: IpAddr) -> Result<Self> {
        let mut command = from.command(&["ping", "-n", "-i", "0.02", &to.to_string()])?;
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("start ping")?;
        let lines = BufReader::new(child.stdout.take().context("ping has an output")?).lines();
        let answered = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = Arc::clone(&answered);
        let reader = thread::spawn(move || {
            for number in lines.map_while(Result::ok).filter_map(|line| sequence(&line)) {
                noted.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
            }
        });
        let stream = Self { name: format!("ping from {} to {to}", from.name), child, answered, reader: Some(reader) };
        stream.go_on(10)?;
        Ok(stream)
    }

    fn answers(&self) -> usize {
        self.answered.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits for so many more answers.
    pub(crate) fn go_on(&self, more: usize) -> Result<()> {
        let target = self.answers() + more;
        let bound = Duration::from_secs(10) + Duration::from_millis(40) * u32::try_from(more)?;
        wait_for(&format!("{more} more answers to the {}", self.name), bound, || {
            Ok((self.answers() >= target).then_some(()))
        })
    }

    /// Stops it. Fails if a packet was not answered.
    pub(crate) fn finish(mut self) -> Result<()> {
        // Answers to the last packets must have arrived.
        self.go_on(10)?;
        self.stop()?;
        let answered = self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        let last = *answered.last().context("no answer")?;
        let lost: Vec<u32> = (1..=last).filter(|number| !answered.contains(number)).collect();
        match lost.as_slice() {
            [] => Ok(()),
            [first, ..] => {
                bail!("{}: {} of {last} packets are lost, the first is number {first}", self.name, lost.len())
            }
        }
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(reader) = self.reader.take() {
            kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT).context("stop ping")?;
            self.child.wait()?;
            reader.join().map_err(|_| anyhow!("the reader of ping panicked"))?;
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // After a failure: the ping must not outlive the scenario. It may have ended already.
        let _ = self.stop();
    }
}

/// Sequence number in a line of output of ping.
fn sequence(line: &str) -> Option<u32> {
    let (_, after) = line.split_once("bytes from")?.1.split_once("icmp_seq=")?;
    after.split(' ').next()?.parse().ok()
}
