//! The listener at the kernel's packet log.

use std::{error::Error, io, thread, time::Duration};

use tokio::sync::mpsc::UnboundedSender;
use towpath_core::policy::packet_log::{GROUP, SNAPLEN, read_prefix};
use towpath_dataplane::{
    nflog::{LogBatch, LoggedPacket, PacketHeader, PacketLog, TransportHeader},
    nfnetlink::NetlinkError,
};
use towpath_node::{
    Input,
    denials::{PacketBatch, PacketRecord},
    explain::{PacketTuple, Payload},
};
use tracing::{debug, warn};

use crate::input::Arrival;

/// Pause before the log group is bound again: the last agent may not have ended yet.
const RETRY: Duration = Duration::from_secs(5);

/// Starts the listener. Policies are enforced without it, so a failure is logged, and tried again.
///
/// # Errors
/// If the thread cannot be started.
pub fn listen(to: UnboundedSender<Arrival>) -> io::Result<()> {
    let listen = move || {
        let mut failures = 0_u32;
        while !to.is_closed() {
            let Err(error) = forward(&to, &mut failures) else { return };
            let error = &error as &dyn Error;
            if failures == 0 {
                warn!(error, "packet log not available; packets that policies drop are not reported; tried again");
            } else {
                debug!(error, "packet log not available; tried again");
            }
            failures += 1;
            thread::sleep(RETRY);
        }
    };
    thread::Builder::new().name("packet-log".to_owned()).spawn(listen).map(drop)
}

/// Forwards packets until the daemon ends.
fn forward(to: &UnboundedSender<Arrival>, failures: &mut u32) -> Result<(), NetlinkError> {
    let mut log = PacketLog::bind(GROUP, SNAPLEN)?;
    *failures = 0;
    loop {
        let batch = packets(&log.receive(None)?);
        if batch != PacketBatch::default() && to.send(Arrival::Input(Input::Packets(batch))).is_err() {
            return Ok(());
        }
    }
}

/// The packets that our rules logged: any other rule can log to our group, too.
fn packets(batch: &LogBatch) -> PacketBatch {
    PacketBatch { packets: batch.packets.iter().filter_map(packet).collect(), lost: batch.lost }
}

fn packet(logged: &LoggedPacket) -> Option<PacketRecord> {
    let (reason, direction) = read_prefix(&logged.prefix)?;
    let PacketHeader { source, destination, transport } = logged.header;
    let payload = match transport {
        TransportHeader::Port(protocol, port) => Payload::Port(protocol, port),
        TransportHeader::Icmp(protocol, kind) => Payload::Icmp(protocol, kind),
        TransportHeader::Other(protocol) => Payload::Other(protocol),
    };
    Some(PacketRecord { reason, direction, tuple: PacketTuple { source, destination, payload } })
}

#[cfg(test)]
mod tests {
    use towpath_core::{
        model::Protocol,
        policy::{
            ir::Direction,
            packet_log::{Reason, prefix},
        },
    };

    use super::*;

    #[test]
    fn only_what_our_rules_logged_counts() {
        let (source, destination) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let header = PacketHeader { source, destination, transport: TransportHeader::Port(Protocol::Tcp, 80) };
        let ours = LoggedPacket { prefix: prefix(Reason::Denied, Direction::Egress).to_owned(), header };
        let other = LoggedPacket { prefix: "ufw".to_owned(), header };
        let tuple = PacketTuple { source, destination, payload: Payload::Port(Protocol::Tcp, 80) };
        let record = PacketRecord { reason: Reason::Denied, direction: Direction::Egress, tuple };
        let batch = packets(&LogBatch { packets: vec![other, ours], lost: 7 });
        assert_eq!(batch, PacketBatch { packets: vec![record], lost: 7 });
    }
}
