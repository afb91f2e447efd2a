//! A machine on the nodes' link that is no node.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use towpath_e2e::cluster::{Cluster, IpFamily};
use towpath_e2e::underlay;

use crate::traffic::{self, Answer};

/// Number of the machine in the underlay: above all nodes, below the gateway.
const NUMBER: u8 = 230;
/// Its port.
const PORT: u16 = 7000;
const ROLE: &str = "outside";

/// The machine, with a server of either protocol.
pub(crate) struct Outside {
    pub(crate) address: IpAddr,
    pub(crate) tcp: TcpListener,
    pub(crate) udp: UdpSocket,
    netns: File,
}

/// Runs `act` with the machine, which is removed afterwards.
pub(crate) fn with_outside<T>(cluster: &Cluster, act: impl FnOnce(&Outside) -> Result<T>) -> Result<T> {
    let netns = underlay::netns(cluster.name(), ROLE);
    // Left by an earlier run that was interrupted.
    if underlay::present(cluster.name())?.contains(&netns) {
        underlay::remove(&netns)?;
    }
    underlay::join(cluster.name(), ROLE, NUMBER, IpFamily::V4)?;
    let outcome = open(&netns).and_then(|outside| act(&outside));
    underlay::remove(&netns)?;
    outcome
}

fn open(name: &str) -> Result<Outside> {
    let netns = File::open(underlay::netns_path(name)).with_context(|| format!("open {name}"))?;
    let address = IpAddr::V4(underlay::ipv4(NUMBER));
    // Sockets stay in the namespace in which they were created.
    let (tcp, udp) = inside(&netns, || {
        let (tcp, udp) = (TcpListener::bind((address, PORT))?, UdpSocket::bind((address, PORT))?);
        udp.set_read_timeout(Some(Duration::from_secs(3)))?;
        Ok((tcp, udp))
    })?;
    Ok(Outside { address, tcp, udp, netns })
}

impl Outside {
    /// Where its servers listen.
    pub(crate) fn server(&self) -> SocketAddr {
        SocketAddr::new(self.address, PORT)
    }

    /// The result of a TCP connection that the machine opens.
    pub(crate) fn connect(&self, to: SocketAddr) -> Result<Answer> {
        inside(&self.netns, || traffic::connect(to)).context("connect from the outside")
    }
}

fn inside<T: Send>(netns: &File, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET).context("enter the outside")?;
            act()
        });
        inside.join().map_err(|_| anyhow!("a thread in the outside panicked"))?
    })
}
