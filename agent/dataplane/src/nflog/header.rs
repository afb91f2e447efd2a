//! Decodes the headers of a packet: addresses, protocol, ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_core::model::Protocol;

/// The addresses and the transport header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketHeader {
    /// The source address.
    pub source: IpAddr,
    /// The destination address, of the same family.
    pub destination: IpAddr,
    /// The transport header.
    pub transport: TransportHeader,
}

/// The transport header of a packet, as far as policies match it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransportHeader {
    /// A protocol with ports, and the destination port.
    Port(Protocol, u16),
    /// ICMP or ICMPv6: the protocol number, 1 or 58, and the message type.
    Icmp(u8, u8),
    /// Another protocol, by its number in the IP header; or one of those above in a truncated packet, or in a fragment
    /// other than the first.
    Other(u8),
}

/// Protocol numbers in the IP header (RFC 8200 section 4, RFC 4302 for the authentication header).
const HOP_BY_HOP: u8 = 0;
const ICMP: u8 = 1;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const ICMPV6: u8 = 58;
const DESTINATION_OPTIONS: u8 = 60;

impl PacketHeader {
    /// Decodes a packet from its IP header on; `None` for one of another protocol, or truncated in its first header.
    #[must_use]
    pub fn decode(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => decode_v4(packet),
            6 => decode_v6(packet),
            _ => None,
        }
    }
}

/// RFC 791, section 3.1.
fn decode_v4(packet: &[u8]) -> Option<PacketHeader> {
    let (source, destination) = (array::<4>(packet, 12)?, array::<4>(packet, 16)?);
    let protocol = packet[9];
    let fragment_offset = u16::from_be_bytes(array(packet, 6)?) & 0x1fff;
    let length = usize::from(packet[0] & 0x0f) * 4;
    let payload = if fragment_offset == 0 { packet.get(length..) } else { None };
    Some(PacketHeader {
        source: Ipv4Addr::from(source).into(),
        destination: Ipv4Addr::from(destination).into(),
        transport: decode_transport(protocol, payload.unwrap_or_default()),
    })
}

/// RFC 8200, sections 3 and 4.
fn decode_v6(packet: &[u8]) -> Option<PacketHeader> {
    let (source, destination) = (array::<16>(packet, 8)?, array::<16>(packet, 24)?);
    let (mut protocol, mut rest) = (packet[6], &packet[40..]);
    // Each round consumes at least eight bytes.
    while let Some((next, payload)) = after_extension(protocol, rest) {
        (protocol, rest) = (next, payload);
    }
    Some(PacketHeader {
        source: Ipv6Addr::from(source).into(),
        destination: Ipv6Addr::from(destination).into(),
        transport: decode_transport(protocol, rest),
    })
}

/// The protocol and the bytes after an extension header; `None` if it is another header, or truncated.
fn after_extension(protocol: u8, header: &[u8]) -> Option<(u8, &[u8])> {
    let length = |units: usize| usize::from(*header.get(1).unwrap_or(&0)) * units + 8;
    let length = match protocol {
        HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => length(8),
        // In units of four bytes, less two of them.
        AUTHENTICATION => length(4),
        FRAGMENT => {
            let offset = u16::from_be_bytes(array(header, 2)?) >> 3;
            // A later fragment has no transport header.
            if offset != 0 {
                return Some((header[0], &[]));
            }
            8
        }
        _ => return None,
    };
    Some((*header.first()?, header.get(length..)?))
}

fn decode_transport(protocol: u8, payload: &[u8]) -> TransportHeader {
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let with_ports = all.into_iter().find(|known| known.number() == protocol);
    let destination = array(payload, 2).map(u16::from_be_bytes);
    match (with_ports, protocol, destination) {
        (Some(known), _, Some(port)) => TransportHeader::Port(known, port),
        (None, ICMP | ICMPV6, Some(_)) => TransportHeader::Icmp(protocol, payload[0]),
        _ => TransportHeader::Other(protocol),
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
    fn ports_and_types_are_found_behind_every_extension_header() {
        let [tcp, udp, sctp] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|p| TransportHeader::Port(p, 80));
        let behind = |header: &[u8], payload: &[u8]| [header, payload].concat();
        let routing_behind_options = behind(&[43, 0, 0, 0, 0, 0, 0, 0], &behind(&[6, 1, 0, 0, 0, 0, 0, 0], &[0; 8]));
        for (packet, transport, why) in [
            (v4(6, 0, 0, &TO_80), tcp, "TCP"),
            (v4(17, 0x4000, 0, &TO_80), udp, "not to be fragmented"),
            (v4(132, 0x2000, 0, &TO_80), sctp, "the first fragment"),
            (v4(17, 1, 0, &TO_80), TransportHeader::Other(17), "a later fragment has no ports"),
            (v4(6, 0, 10, &TO_80), tcp, "the most options that there can be"),
            (v4(1, 0, 0, &[8, 0, 0, 0]), TransportHeader::Icmp(1, 8), "an echo request"),
            (v4(47, 0, 0, &TO_80), TransportHeader::Other(47), "GRE"),
            (v4(58, 0, 0, &[128, 0, 0, 0]), TransportHeader::Icmp(58, 128), "ICMPv6 over IPv4"),
            (v4(6, 0, 0, &TO_80[..3]), TransportHeader::Other(6), "truncated in the ports"),
            (v6(17, &TO_80), udp, "UDP"),
            (v6(58, &[128, 0, 0, 0]), TransportHeader::Icmp(58, 128), "an echo request"),
            (v6(0, &behind(&[6, 0, 0, 0, 0, 0, 0, 0], &TO_80)), tcp, "hop-by-hop options"),
            (v6(60, &behind(&routing_behind_options, &TO_80)), tcp, "options, and a routing header of two units"),
            (v6(51, &behind(&[17, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &TO_80)), udp, "an authentication header"),
            (v6(44, &behind(&[17, 0, 0, 1, 0, 0, 0, 0], &TO_80)), udp, "the first fragment"),
            (v6(44, &behind(&[17, 0, 0, 9, 0, 0, 0, 0], &TO_80)), TransportHeader::Other(17), "a later fragment"),
            (v6(0, &[6, 9, 0, 0]), TransportHeader::Other(0), "truncated in an extension header"),
            (v6(50, &TO_80), TransportHeader::Other(50), "what is encrypted is not read"),
            (v6(59, &[]), TransportHeader::Other(59), "no next header"),
        ] {
            assert_eq!(PacketHeader::decode(&packet).map(|header| header.transport), Some(transport), "{why}");
        }
    }

    #[test]
    fn addresses_are_decoded_from_the_ip_header() {
        let header = PacketHeader::decode(&v4(6, 0, 0, &TO_80)).unwrap();
        assert_eq!([header.source, header.destination], ["10.0.0.1", "10.0.0.2"].map(|a| a.parse::<IpAddr>().unwrap()));
        let header = PacketHeader::decode(&v6(6, &TO_80)).unwrap();
        assert_eq!([header.source, header.destination], ["fd00::1", "fd00::2"].map(|a| a.parse::<IpAddr>().unwrap()));
        for (bytes, why) in [
            (vec![], "nothing"),
            (v4(6, 0, 0, &[])[..19].to_vec(), "truncated in the addresses"),
            (v6(6, &[])[..39].to_vec(), "truncated in the addresses"),
            (vec![0x50; 60], "version 5"),
        ] {
            assert_eq!(PacketHeader::decode(&bytes), None, "{why}");
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
            let header = PacketHeader::decode(&bytes);
            prop_assert!(header.is_none_or(|header| header.source.is_ipv4() == header.destination.is_ipv4()));
            prop_assert!(bytes.len() < 40 || version == 0xff || header.is_some(), "the first header is there");
        }
    }
}
