//! Messages on the wire (RFC 3549, section 2.3): a header of 16 bytes, a payload, padding to a multiple of four bytes.

use std::io;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NlasIterator};

use super::NetlinkError;

/// The length of `struct nlmsghdr` in bytes.
pub const HEADER: usize = 16;

/// A message to the kernel, without its header.
pub trait NetlinkRequest {
    /// The type of the message: `RTM_*`, or a subsystem of netfilter and its message.
    fn message_type(&self) -> u16;

    /// `NLM_F_CREATE` and the like. Those that every request has are added when it is sent.
    fn flags(&self) -> u16;

    /// Appends what goes behind the header.
    fn append_payload(&self, to: &mut Vec<u8>);
}

/// Appends a request in its form on the wire. The port stays 0: the kernel knows the sender.
pub(super) fn append(request: &impl NetlinkRequest, more_flags: u16, sequence: u32, to: &mut Vec<u8>) {
    let start = to.len();
    to.extend([0; HEADER]);
    request.append_payload(to);
    let length = u32::try_from(to.len() - start).expect("a message is far below 4 GiB");
    let header = &mut to[start..start + HEADER];
    header[..4].copy_from_slice(&length.to_ne_bytes());
    header[4..6].copy_from_slice(&request.message_type().to_ne_bytes());
    header[6..8].copy_from_slice(&(NLM_F_REQUEST | request.flags() | more_flags).to_ne_bytes());
    header[8..12].copy_from_slice(&sequence.to_ne_bytes());
    to.resize(to.len().next_multiple_of(4), 0);
}

/// The messages of a datagram: header and payload. A truncated one ends the iteration.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (NetlinkHeader, &[u8])> {
    std::iter::from_fn(move || {
        let field = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let kind_and_flags = bytes.get(4..8)?;
        let mut header = NetlinkHeader::default();
        header.length = field(0)?;
        header.message_type = u16::from_ne_bytes([kind_and_flags[0], kind_and_flags[1]]);
        header.flags = u16::from_ne_bytes([kind_and_flags[2], kind_and_flags[3]]);
        header.sequence_number = field(8)?;
        header.port_number = field(12)?;
        let length = header.length as usize;
        let payload = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, payload))
    })
}

/// Reads an `NLMSG_ERROR`: a negative error number or 0, the header of the request, attributes.
pub(super) fn acknowledgement(payload: &[u8]) -> Result<(), NetlinkError> {
    result(payload, 4 + HEADER)
}

/// Reads an `NLMSG_DONE`, which ends a dump: a negative error number or 0, attributes.
pub(super) fn end_of_dump(payload: &[u8]) -> Result<(), NetlinkError> {
    result(payload, 4)
}

fn result(payload: &[u8], attributes_at: usize) -> Result<(), NetlinkError> {
    let code = payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    outcome(code, payload.get(attributes_at..).unwrap_or_default())
}

/// The outcome in an acknowledgement: a negative error number or 0 for success, and attributes with the kernel's text.
///
/// # Errors
/// [`NetlinkError::Rejected`] for a number other than 0.
pub fn outcome(code: i32, attributes: &[u8]) -> Result<(), NetlinkError> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    if code == 0 {
        return Ok(());
    }
    let message = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
    Err(NetlinkError::Rejected { message, source: io::Error::from_raw_os_error(code.wrapping_neg()) })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of any kind, of which the first four are often a length that fits.
    pub(crate) fn datagram() -> impl Strategy<Value = Vec<u8>> {
        (prop::collection::vec(any::<u8>(), 0..200), 0..64_u32).prop_map(|(mut bytes, length)| {
            if let Some(field) = bytes.first_chunk_mut() {
                *field = length.to_ne_bytes();
            }
            bytes
        })
    }

    /// Three bytes of payload, so that padding follows.
    struct Odd;

    impl NetlinkRequest for Odd {
        fn message_type(&self) -> u16 {
            0x0a03
        }
        fn flags(&self) -> u16 {
            0x400
        }
        fn append_payload(&self, to: &mut Vec<u8>) {
            to.extend(b"abc");
        }
    }

    #[test]
    fn what_is_sent_is_read_again_message_by_message() {
        let mut bytes = Vec::new();
        for sequence in [7, 8] {
            append(&Odd, 4, sequence, &mut bytes);
        }
        assert_eq!(bytes.len(), 40, "each message begins at a multiple of four bytes");
        let seen: Vec<_> = messages(&bytes)
            .map(|(header, payload)| (header.message_type, header.flags, header.sequence_number, payload))
            .collect();
        assert_eq!(seen, [(0x0a03, 0x405, 7, &b"abc"[..]), (0x0a03, 0x405, 8, b"abc")]);
    }

    #[test]
    fn a_rejection_carries_the_kernels_text() {
        let text = b"Invalid VNI\0";
        let length = u16::try_from(4 + text.len()).unwrap();
        let mut payload = (-22_i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        payload.extend(length.to_ne_bytes());
        payload.extend(1_u16.to_ne_bytes());
        payload.extend(text);
        let error = acknowledgement(&payload).unwrap_err();
        assert_eq!(error.to_string(), "rejected by the kernel (Invalid VNI)");
        assert_eq!(error.errno(), Some(nix::errno::Errno::EINVAL));
        assert!(end_of_dump(&[0; 4]).is_ok(), "zero is success");
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_read_to_an_end(bytes in datagram()) {
            for (_, payload) in messages(&bytes) {
                let _ = acknowledgement(payload);
            }
        }
    }
}
