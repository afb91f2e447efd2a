//! The kernel's packet log (linux/netfilter/nfnetlink_log.h): copies of the heads of packets that a rule logs to a group.
//!
//! Expected flow: [`PacketLog::bind`] in the namespace whose rules log, then [`PacketLog::hear`] for ever. A group belongs
//! to one socket of a namespace; nobody else hears what goes there. The kernel gathers packets for up to 50 ms, so that a
//! burst wakes the listener few times.
//!
//! What the kernel has no room for is lost, and the numbers that it gives the packets tell how many those were. Packets
//! come from whoever sends them: nothing in them is trusted, and what cannot be read is passed over.

mod head;

use std::time::Duration;

pub use self::head::{Carried, Head};
use crate::nfnetlink::{MessageType, NetlinkError, NfnetlinkMessage, NfnetlinkRequest, NfnetlinkSocket, Received};

/// `NFNL_SUBSYS_ULOG`.
const SUBSYSTEM: u8 = 4;
/// `NFULNL_MSG_PACKET`.
const PACKET: MessageType = MessageType { subsystem: SUBSYSTEM, number: 0 };
/// `NFULNL_MSG_CONFIG`.
const CONFIG: MessageType = MessageType { subsystem: SUBSYSTEM, number: 1 };

/// `NFULA_PAYLOAD`: the packet from its IP header on.
const PAYLOAD: u16 = 9;
/// `NFULA_PREFIX`: what the rule says.
const PREFIX: u16 = 10;
/// `NFULA_SEQ`: counts the packets of the group.
const SEQUENCE: u16 = 12;

/// `NFULA_CFG_CMD`, and `NFULNL_CFG_CMD_BIND`.
const COMMAND: (u16, u8) = (1, 1);
/// `NFULA_CFG_MODE`, and `NFULNL_COPY_PACKET`.
const MODE: (u16, u8) = (2, 2);
/// `NFULA_CFG_TIMEOUT`, and hundredths of a second that the kernel gathers at most.
const GATHER: (u16, u32) = (4, 5);
/// `NFULA_CFG_QTHRESH`, and packets that it gathers at most.
const THRESHOLD: (u16, u32) = (5, 32);
/// `NFULA_CFG_FLAGS`, and `NFULNL_CFG_F_SEQ`.
const FLAGS: (u16, u16) = (6, 1);

/// A listener to one group in one network namespace.
#[derive(Debug)]
pub struct PacketLog {
    socket: NfnetlinkSocket,
    /// The number that the next packet has if none is lost.
    next: Option<u32>,
}

/// A packet that a rule has logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logged {
    /// What the rule says.
    pub prefix: String,
    /// Between whom the packet goes.
    pub head: Head,
}

/// What came at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// The packets, in their order. Those that cannot be read are not here.
    pub packets: Vec<Logged>,
    /// How many before the last of them the kernel had no room for.
    pub lost: u32,
}

impl PacketLog {
    /// Listens to the group in the calling thread's network namespace, to so many bytes of each packet.
    ///
    /// # Errors
    /// If the group is another process's (EBUSY or EPERM), the kernel has no packet log, or does not let us near it.
    pub fn bind(group: u16, snaplen: u32) -> Result<Self, NetlinkError> {
        let mut socket = NfnetlinkSocket::open()?;
        let mut request = NfnetlinkRequest { resource: group, ..NfnetlinkRequest::new(CONFIG, 0) };
        let [a, b, c, d] = snaplen.to_be_bytes();
        request
            .body
            .u8(COMMAND.0, COMMAND.1)
            .bytes(MODE.0, &[a, b, c, d, MODE.1, 0])
            .be32(GATHER.0, GATHER.1)
            .be32(THRESHOLD.0, THRESHOLD.1)
            .be16(FLAGS.0, FLAGS.1);
        socket.execute(&request)?;
        Ok(Self { socket, next: None })
    }

    /// Waits for packets, at most `within`, for ever if that is `None`. Nothing within the time is an empty batch.
    ///
    /// # Errors
    /// If the socket fails: bind anew.
    pub fn hear(&mut self, within: Option<Duration>) -> Result<Batch, NetlinkError> {
        let mut batch = Batch::default();
        let next = &mut self.next;
        match self.socket.receive(within, |answer| take(answer, &mut batch, next))? {
            // What an overrun has cost is seen by the number of the next packet.
            Received::Messages | Received::Nothing | Received::Overrun => Ok(batch),
        }
    }
}

fn take(answer: NfnetlinkMessage<'_>, batch: &mut Batch, next: &mut Option<u32>) {
    if answer.kind != PACKET {
        return;
    }
    let attribute = |kind| answer.attributes.find(kind);
    if let Some(number) = attribute(SEQUENCE).and_then(|a| a.be32()) {
        let expected = next.unwrap_or(number);
        batch.lost = batch.lost.saturating_add(number.wrapping_sub(expected));
        *next = Some(number.wrapping_add(1));
    }
    let prefix = attribute(PREFIX).and_then(|a| a.text()).unwrap_or_default();
    if let Some(head) = attribute(PAYLOAD).and_then(|a| Head::read(a.payload)) {
        batch.packets.push(Logged { prefix: prefix.to_owned(), head });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nfnetlink::{Attributes, Body};

    fn told(number: u32, payload: &[u8]) -> Body {
        let mut body = Body::default();
        body.text(PREFIX, "towpath-in").bytes(PAYLOAD, payload).be32(SEQUENCE, number);
        body
    }

    #[test]
    fn what_is_lost_is_counted_by_the_numbers_of_what_came() {
        let mut udp = vec![0; 28];
        (udp[0], udp[9]) = (0x45, 17);
        let (mut batch, mut next) = (Batch::default(), None);
        for (number, payload, lost, why) in [
            (u32::MAX - 1, &udp[..], 0, "the first one that is heard"),
            (u32::MAX, &udp[..], 0, "the next one"),
            (3, &udp[..], 3, "0, 1 and 2 are missing"),
            (4, &[][..], 3, "a packet that cannot be read is not lost"),
            (6, &udp[..], 4, "5 is missing"),
        ] {
            let body = told(number, payload);
            let attributes = Attributes::new(body.as_bytes());
            take(NfnetlinkMessage { kind: PACKET, family: 2, resource: 0, attributes }, &mut batch, &mut next);
            assert_eq!(batch.lost, lost, "{why}");
        }
        assert_eq!(batch.packets.len(), 4);
        assert!(batch.packets.iter().all(|packet| packet.prefix == "towpath-in"));
        let body = told(100, &udp);
        let attributes = Attributes::new(body.as_bytes());
        take(NfnetlinkMessage { kind: CONFIG, family: 2, resource: 0, attributes }, &mut batch, &mut next);
        assert_eq!((batch.packets.len(), batch.lost), (4, 4), "only packets are packets");
    }
}
