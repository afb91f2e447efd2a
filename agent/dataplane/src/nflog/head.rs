//! The head of a packet: addresses, protocol, ports.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use towpath_core::model::Protocol;

/// What tells where a packet comes from, where it goes and what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Head {
    /// The sender's address.
    pub source: IpAddr,
    /// The receiver's, of the same family.
    pub destination: IpAddr,
    /// What it carries.
    pub carried: Carried,
}

/// What a packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carried {
    /// A protocol with ports, and the destination's port.
    Port(Protocol, u16),
    /// A message of ICMP or of ICMPv6: the protocol's number, 1 or 58, and the message's type.
    Icmp(u8, u8),
    /// Another protocol, by its number in the IP header; or one of those above where the packet is cut off, or is a later
    /// part of a fragmented one.
    Other(u8),
}

/// Numbers in the IP header (RFC 8200 section 4, RFC 4302 for the authentication header).
const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(Protocol::Tcp, port) => write!(f, "TCP port {port}"),
            Self::Port(Protocol::Udp, port) => write!(f, "UDP port {port}"),
            Self::Port(Protocol::Sctp, port) => write!(f, "SCTP port {port}"),
            Self::Icmp(ICMP, kind) => write!(f, "ICMP type {kind}"),
            Self::Icmp(_, kind) => write!(f, "ICMPv6 type {kind}"),
            Self::Other(protocol) => write!(f, "protocol {protocol}"),
        }
    }
}

impl Head {
    /// Reads a packet from its IP header on. `None` for what is no IP or is cut off in its first header.
    #[must_use]
    pub fn read(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => read_v4(packet),
            6 => read_v6(packet),
            _ => None,
        }
    }
}

/// RFC 791, section 3.1.
fn read_v4(packet: &[u8]) -> Option<Head> {
    let (source, destination) = (array::<4>(packet, 12)?, array::<4>(packet, 16)?);
    let protocol = packet[9];
    let fragment_offset = u16::from_be_bytes(array(packet, 6)?) & 0x1fff;
    let length = usize::from(packet[0] & 0x0f) * 4;
    let payload = if fragment_offset == 0 { packet.get(length..) } else { None };
    Some(Head {
        source: Ipv4Addr::from(source).into(),
        destination: Ipv4Addr::from(destination).into(),
        carried: read_payload(protocol, payload.unwrap_or_default()),
    })
}

/// RFC 8200, sections 3 and 4.
fn read_v6(packet: &[u8]) -> Option<Head> {
    let (source, destination) = (array::<16>(packet, 8)?, array::<16>(packet, 24)?);
    let (mut protocol, mut rest) = (packet[6], &packet[40..]);
    // Each turn takes eight bytes at least, or ends.
    while let Some((next, behind)) = behind_extension(protocol, rest) {
        (protocol, rest) = (next, behind);
    }
    Some(Head {
        source: Ipv6Addr::from(source).into(),
        destination: Ipv6Addr::from(destination).into(),
        carried: read_payload(protocol, rest),
    })
}

/// What follows an extension header: `None` if it is none, or is cut off.
fn behind_extension(protocol: u8, header: &[u8]) -> Option<(u8, &[u8])> {
    let length = |units: usize| usize::from(*header.get(1).unwrap_or(&0)) * units + 8;
    let length = match protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => length(8),
        // In units of four bytes, less two of them.
        AUTHENTICATION => length(4),
        FRAGMENT => {
            let offset = u16::from_be_bytes(array(header, 2)?) >> 3;
            // Of a later fragment the protocol is known, and nothing of what it carries.
            if offset != 0 {
                return Some((header[0], &[]));
            }
            8
        }
        _ => return None,
    };
    Some((*header.first()?, header.get(length..)?))
}

fn read_payload(protocol: u8, payload: &[u8]) -> Carried {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let with_ports = all.into_iter().find(|known| known.number() == protocol);
    let destination = array(payload, 2).map(u16::from_be_bytes);
    match (with_ports, protocol, destination) {
        (Some(known), _, Some(port)) => Carried::Port(known, port),
        (None, ICMP | ICMPV6, Some(_)) => Carried::Icmp(protocol, payload[0]),
        _ => Carried::Other(protocol),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, fragment: u16, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45 + u8::try_from(options).unwrap();
        packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet.extend(vec![1; options * 4]);
        packet.extend(payload);
        packet
    }

    fn v6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        (packet[0], packet[6]) = (0x60, protocol);
        packet[8..24].copy_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
        packet[24..40].copy_from_slice(&Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).octets());
        packet.extend(payload);
        packet
    }

    const TO_80: [u8; 4] = [0x30, 0x39, 0, 80];

    #[test]
    fn ports_and_types_are_found_behind_every_header_that_may_come_before() {
        let [tcp, udp, sctp] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|p| Carried::Port(p, 80));
        let behind = |header: &[u8], payload: &[u8]| [header, payload].concat();
        let routing_behind_options = behind(&[43, 0, 0, 0, 0, 0, 0, 0], &behind(&[6, 1, 0, 0, 0, 0, 0, 0], &[0; 8]));
        for (packet, carried, why) in [
            (v4(6, 0, 0, &TO_80), tcp, "TCP"),
            (v4(17, 0x4000, 0, &TO_80), udp, "not to be fragmented"),
            (v4(132, 0x2000, 0, &TO_80), sctp, "the first fragment"),
            (v4(17, 1, 0, &TO_80), Carried::Other(17), "a later fragment has no ports"),
            (v4(6, 0, 10, &TO_80), tcp, "the most options that there can be"),
            (v4(1, 0, 0, &[8, 0, 0, 0]), Carried::Icmp(1, 8), "an echo request"),
            (v4(47, 0, 0, &TO_80), Carried::Other(47), "GRE"),
            (v4(58, 0, 0, &[128, 0, 0, 0]), Carried::Icmp(58, 128), "wherever it occurs"),
            (v4(6, 0, 0, &TO_80[..3]), Carried::Other(6), "cut off in the ports"),
            (v6(17, &TO_80), udp, "UDP"),
            (v6(58, &[128, 0, 0, 0]), Carried::Icmp(58, 128), "an echo request"),
            (v6(0, &behind(&[6, 0, 0, 0, 0, 0, 0, 0], &TO_80)), tcp, "hop-by-hop options"),
            (v6(60, &behind(&routing_behind_options, &TO_80)), tcp, "options, and a routing header of two units"),
            (v6(51, &behind(&[17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &TO_80)), udp, "an authentication header"),
            (v6(44, &behind(&[17, 0, 0, 1, 0, 0, 0, 0], &TO_80)), udp, "the first fragment"),
            (v6(44, &behind(&[17, 0, 0, 9, 0, 0, 0, 0], &TO_80)), Carried::Other(17), "a later fragment"),
            (v6(0, &[6, 9, 0, 0]), Carried::Other(0), "cut off in an extension header"),
            (v6(50, &TO_80), Carried::Other(50), "what is encrypted is not read"),
            (v6(59, &[]), Carried::Other(59), "nothing behind"),
        ] {
            assert_eq!(Head::read(&packet).map(|head| head.carried), Some(carried), "{why}");
        }
    }

    #[test]
    fn what_a_packet_carries_is_said_as_people_say_it() {
        for (carried, text) in [
            (Carried::Port(Protocol::Tcp, 80), "TCP port 80"),
            (Carried::Port(Protocol::Udp, 53), "UDP port 53"),
            (Carried::Port(Protocol::Sctp, 9), "SCTP port 9"),
            (Carried::Icmp(1, 8), "ICMP type 8"),
            (Carried::Icmp(58, 128), "ICMPv6 type 128"),
            (Carried::Other(47), "protocol 47"),
        ] {
            assert_eq!(carried.to_string(), text);
        }
    }

    #[test]
    fn addresses_are_those_of_the_header_and_what_is_no_ip_has_none() {
        let head = Head::read(&v4(6, 0, 0, &TO_80)).unwrap();
        assert_eq!([head.source, head.destination], ["10.0.0.1", "10.0.0.2"].map(|a| a.parse::<IpAddr>().unwrap()));
        let head = Head::read(&v6(6, &TO_80)).unwrap();
        assert_eq!([head.source, head.destination], ["fd00::1", "fd00::2"].map(|a| a.parse::<IpAddr>().unwrap()));
        for (bytes, why) in [
            (vec![], "nothing"),
            (v4(6, 0, 0, &[])[..19].to_vec(), "cut off in the addresses"),
            (v6(6, &[])[..39].to_vec(), "cut off in the addresses"),
            (vec![0x50; 60], "version 5"),
        ] {
            assert_eq!(Head::read(&bytes), None, "{why}");
        }
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_read_to_an_end(
            version in prop::sample::select(vec![0x45_u8, 0x4f, 0x60, 0xff]),
            protocol in prop::sample::select(vec![0_u8, 6, 43, 44, 51, 58, 60]),
            mut bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            if let Some(next) = bytes.get_mut(6) {
                *next = protocol;
            }
            let head = Head::read(&bytes);
            prop_assert!(head.is_none_or(|head| head.source.is_ipv4() == head.destination.is_ipv4()));
            prop_assert!(bytes.len() < 40 || version == 0xff || head.is_some(), "the first header is there");
        }
    }
}
