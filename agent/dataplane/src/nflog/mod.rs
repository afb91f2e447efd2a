//! nflog (linux/netfilter/nfnetlink_log.h): the first bytes of the packets that a rule logs to a group.
//!
//! Expected flow: [`PacketLog::bind`] in the namespace whose rules log, then [`PacketLog::receive`] for ever. A group
//! belongs to one socket of a namespace. The kernel collects packets for up to 50 ms, so that a burst wakes the listener
//! few times.
//!
//! The kernel drops packets when the receive buffer is full; gaps in their sequence numbers tell how many. Packets are
//! untrusted input: one that cannot be decoded is skipped.

mod header;

use std::time::Duration;

pub use self::header::{PacketHeader, TransportHeader};
use crate::nfnetlink::{MessageType, NetlinkError, NfnetlinkMessage, NfnetlinkRequest, NfnetlinkSocket, Received};

/// `NFNL_SUBSYS_ULOG`.
const SUBSYSTEM: u8 = 4;
/// `NFULNL_MSG_PACKET`.
const PACKET: MessageType = MessageType { subsystem: SUBSYSTEM, number: 0 };
/// `NFULNL_MSG_CONFIG`.
const CONFIG: MessageType = MessageType { subsystem: SUBSYSTEM, number: 1 };

/// `NFULA_PAYLOAD`: the packet from its IP header on.
const PAYLOAD: u16 = 9;
/// `NFULA_PREFIX`: the prefix of the rule's log statement.
const PREFIX: u16 = 10;
/// `NFULA_SEQ`: the packet's sequence number in the group.
const SEQUENCE: u16 = 12;

/// `NFULA_CFG_CMD`, and `NFULNL_CFG_CMD_BIND`.
const COMMAND: (u16, u8) = (1, 1);
/// `NFULA_CFG_MODE`, and `NFULNL_COPY_PACKET`.
const MODE: (u16, u8) = (2, 2);
/// `NFULA_CFG_TIMEOUT`, and how long the kernel collects packets at most, in hundredths of a second.
const FLUSH_TIMEOUT: (u16, u32) = (4, 5);
/// `NFULA_CFG_QTHRESH`, and how many packets it collects at most.
const QUEUE_THRESHOLD: (u16, u32) = (5, 32);
/// `NFULA_CFG_FLAGS`, and `NFULNL_CFG_F_SEQ`.
const FLAGS: (u16, u16) = (6, 1);

/// A listener on one group of one network namespace.
#[derive(Debug)]
pub struct PacketLog {
    socket: NfnetlinkSocket,
    /// The sequence number of the next packet if none is lost.
    next: Option<u32>,
}

/// A packet that a rule logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedPacket {
    /// The prefix of the rule's log statement.
    pub prefix: String,
    /// The addresses and the transport header.
    pub header: PacketHeader,
}

/// The packets of one datagram.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogBatch {
    /// The packets, in order, without those that cannot be decoded.
    pub packets: Vec<LoggedPacket>,
    /// How many packets before the last one the kernel dropped.
    pub lost: u32,
}

impl PacketLog {
    /// Binds a group of the calling thread's network namespace, with the first `snaplen` bytes of each packet.
    ///
    /// # Errors
    /// If another process has the group (EBUSY or EPERM), the kernel has no nflog, or permission is denied.
    pub fn bind(group: u16, snaplen: u32) -> Result<Self, NetlinkError> {
        let mut socket = NfnetlinkSocket::open()?;
        let mut request = NfnetlinkRequest { resource: group, ..NfnetlinkRequest::new(CONFIG, 0) };
        let [a, b, c, d] = snaplen.to_be_bytes();
        request
            .body
            .u8(COMMAND.0, COMMAND.1)
            .bytes(MODE.0, &[a, b, c, d, MODE.1, 0])
            .be32(FLUSH_TIMEOUT.0, FLUSH_TIMEOUT.1)
            .be32(QUEUE_THRESHOLD.0, QUEUE_THRESHOLD.1)
            .be16(FLAGS.0, FLAGS.1);
        socket.execute(&request)?;
        Ok(Self { socket, next: None })
    }

    /// Receives packets. Waits at most `limit`, for ever if that is `None`; the batch is empty if none came in time.
    ///
    /// # Errors
    /// If the socket fails: bind again.
    pub fn receive(&mut self, limit: Option<Duration>) -> Result<LogBatch, NetlinkError> {
        let mut batch = LogBatch::default();
        let next = &mut self.next;
        match self.socket.receive(limit, |message| collect(message, &mut batch, next))? {
            // The sequence number of the next packet tells what an overrun has cost.
            Received::Messages | Received::Nothing | Received::Overrun => Ok(batch),
        }
    }
}

fn collect(message: NfnetlinkMessage<'_>, batch: &mut LogBatch, next: &mut Option<u32>) {
    if message.kind != PACKET {
        return;
    }
    let attribute = |kind| message.attributes.find(kind);
    if let Some(number) = attribute(SEQUENCE).and_then(|a| a.be32()) {
        let expected = next.unwrap_or(number);
        batch.lost = batch.lost.saturating_add(number.wrapping_sub(expected));
        *next = Some(number.wrapping_add(1));
    }
    let prefix = attribute(PREFIX).and_then(|a| a.text()).unwrap_or_default();
    if let Some(header) = attribute(PAYLOAD).and_then(|a| PacketHeader::decode(a.payload)) {
        batch.packets.push(LoggedPacket { prefix: prefix.to_owned(), header });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::{Attributes, Body};

    fn attributes(number: u32, payload: &[u8]) -> Body {
        let mut body = Body::default();
        body.text(PREFIX, "towpath-in").bytes(PAYLOAD, payload).be32(SEQUENCE, number);
        body
    }

    #[test]
    fn lost_packets_are_counted_by_gaps_in_the_sequence_numbers() {
        let mut udp = vec![0; 28];
        (udp[0], udp[9]) = (0x45, 17);
        let (mut batch, mut next) = (LogBatch::default(), None);
        for (number, payload, lost, why) in [
            (u32::MAX - 1, &udp[..], 0, "the first one that is received"),
            (u32::MAX, &udp[..], 0, "the next one"),
            (3, &udp[..], 3, "0, 1 and 2 are missing"),
            (4, &[][..], 3, "a packet that cannot be decoded is not lost"),
            (6, &udp[..], 4, "5 is missing"),
        ] {
            let body = attributes(number, payload);
            let attributes = Attributes::new(body.as_bytes());
            collect(NfnetlinkMessage { kind: PACKET, family: 2, resource: 0, attributes }, &mut batch, &mut next);
            assert_eq!(batch.lost, lost, "{why}");
        }
        assert_eq!(batch.packets.len(), 4);
        assert!(batch.packets.iter().all(|packet| packet.prefix == "towpath-in"));
        let body = attributes(100, &udp);
        let attributes = Attributes::new(body.as_bytes());
        collect(NfnetlinkMessage { kind: CONFIG, family: 2, resource: 0, attributes }, &mut batch, &mut next);
        assert_eq!((batch.packets.len(), batch.lost), (4, 4), "only packets are packets");
    }
}
