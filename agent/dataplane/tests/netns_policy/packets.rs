//! Builds the packets that only raw sockets send.

/// An ICMP echo request (RFC 792; RFC 4443, section 4.1) with this identifier. The kernel fills in ICMPv6's checksum.
pub(crate) fn echo_request(kind: u8, id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut packet = vec![kind, 0, 0, 0, high, low, 0, 1];
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    // All sixteen-bit words, with the carries added in again (RFC 1071).
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// Offset of the probe's id in a packet of [`sctp_init`]: the low half of the initiate tag, which NAT keeps.
pub(crate) const SCTP_ID_OFFSET: usize = 18;

/// An SCTP packet with the INIT chunk that opens an association (RFC 9260, sections 3.1 and 3.3.2).
pub(crate) fn sctp_init(source: u16, destination: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(source.to_be_bytes());
    packet.extend(destination.to_be_bytes());
    // The verification tag of an INIT is 0; the checksum comes last.
    packet.extend([0; 8]);
    // Type 1, no flags, length 20; initiate tag, receiver window, one stream in and out, initial TSN.
    packet.extend([1, 0, 0, 20, 0, 1]);
    packet.extend(source.to_be_bytes());
    packet.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    let sum = crc32c(&packet);
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// SCTP's checksum (RFC 9260, appendix A), which connection tracking verifies.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (REVERSED_POLYNOMIAL * (crc & 1)))
    })
}

/// A packet of a protocol without ports, with the id at the offset of a source port.
pub(crate) fn plain(id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    vec![high, low, 0, 0]
}

/// The payload of a packet from a raw socket. Only IPv4 packets come with their IP header (raw(7), ipv6(7)).
pub(crate) fn payload(packet: &[u8], is_v4: bool) -> &[u8] {
    if is_v4 { &packet[usize::from(packet[0] & 0x0f) * 4..] } else { packet }
}

/// The 16-bit word at an offset, in network byte order.
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}
