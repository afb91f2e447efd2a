//! What all netlink sockets share: the frames on the wire, acknowledgements, errors and bounds
//! (include/uapi/linux/netlink.h).

use std::{io, time::Duration};

use netlink_packet_core::{NetlinkHeader, NlasIterator};

/// How long the kernel may take for one answer. It answers within the system call that asks, except where it must wait
/// for the RTNL lock that everybody who changes the network shares; deleting many interfaces holds that for seconds.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// How often a dump that was interrupted by a change is tried again.
pub const DUMP_ATTEMPTS: u32 = 8;

/// Room for one datagram. The kernel fills up to 32 KiB per datagram of a dump when the reader offers as much.
pub const BUFFER: usize = 64 * 1024;

/// The length of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// What went wrong with a netlink request.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("the kernel refused{}", .message.as_ref().map_or_else(String::new, |m| format!(" ({m})")))]
    Refused {
        /// What the kernel says about it in words, if it does (extended acknowledgement, NLMSGERR_ATTR_MSG).
        message: Option<String>,
        /// Its error number.
        source: io::Error,
    },
    /// The socket itself failed.
    #[error("netlink socket: {step}")]
    Socket {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel did not answer in time.
    #[error("the kernel did not answer within {} s; another program may hold the network lock for long", TIMEOUT.as_secs())]
    Timeout,
    /// A dump was interrupted by changes each time that it was tried.
    #[error("the state changed during each of {DUMP_ATTEMPTS} attempts to read it")]
    Unsteady,
}

impl NetlinkError {
    /// The kernel's error number, if it was the kernel that refused.
    #[must_use]
    pub fn errno(&self) -> Option<nix::Error> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error().map(nix::Error::from_raw),
            Self::Socket { .. } | Self::Timeout | Self::Unsteady => None,
        }
    }
}

impl NetlinkError {
    /// The same error for another request that it befell.
    pub fn once_more(&self) -> Self {
        let copy =
            |source: &io::Error| source.raw_os_error().map_or(source.kind().into(), io::Error::from_raw_os_error);
        match self {
            Self::Refused { message, source } => Self::Refused { message: message.clone(), source: copy(source) },
            Self::Socket { step, source } => Self::Socket { step, source: copy(source) },
            Self::Timeout => Self::Timeout,
            Self::Unsteady => Self::Unsteady,
        }
    }
}

/// The messages of a datagram (RFC 3549, section 2.3: each begins at a multiple of four bytes).
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

/// Reads the payload of an NLMSG_ERROR or NLMSG_DONE message: a negative error number or 0 for success, in an error the
/// header of the request, and then attributes (`include/uapi/linux/netlink.h`), which begin at `attributes_at`.
pub fn acknowledgement(payload: &[u8], attributes_at: usize) -> Result<(), NetlinkError> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let code = payload.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 {
        return Ok(());
    }
    let attributes = payload.get(attributes_at..).unwrap_or_default();
    let message = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == NLMSGERR_ATTR_MSG)
        .map(|attribute| String::from_utf8_lossy(attribute.value()).trim_end_matches('\0').to_owned());
    Err(NetlinkError::Refused { message, source: io::Error::from_raw_os_error(code.wrapping_neg()) })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of any kind, of which the first four are a length that is often right.
    pub(crate) fn datagram() -> impl Strategy<Value = Vec<u8>> {
        (prop::collection::vec(any::<u8>(), 0..200), 0..64_u32).prop_map(|(mut bytes, length)| {
            if let Some(field) = bytes.first_chunk_mut() {
                *field = length.to_ne_bytes();
            }
            bytes
        })
    }

    #[test]
    fn a_refusal_carries_the_kernels_words() {
        let text = b"Invalid VNI\0";
        let length = u16::try_from(4 + text.len()).unwrap();
        let mut payload = (-22_i32).to_ne_bytes().to_vec();
        payload.extend([0; HEADER]);
        payload.extend(length.to_ne_bytes());
        payload.extend(1_u16.to_ne_bytes());
        payload.extend(text);
        let error = acknowledgement(&payload, 4 + HEADER).unwrap_err();
        assert_eq!(error.to_string(), "the kernel refused (Invalid VNI)");
        assert_eq!(error.errno(), Some(nix::errno::Errno::EINVAL));
        assert!(acknowledgement(&[0; 4], 4).is_ok(), "zero is success");
    }

    proptest! {
        #[test]
        fn bytes_of_any_kind_are_read_to_an_end(bytes in datagram()) {
            for (_, payload) in messages(&bytes) {
                let _ = acknowledgement(payload, 4 + HEADER);
            }
        }
    }
}
