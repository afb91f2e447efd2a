//! `RTM_NEWNETCONF` notifications of changed sysctls, by hand: netlink-packet-route does not know the message.

use std::convert::Infallible;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlasIterator};

/// The type of the message (`include/uapi/linux/rtnetlink.h`).
const RTM_NEWNETCONF: u16 = 80;

/// The length of `struct netconfmsg` with its padding, in bytes.
const NETCONF_HEADER: usize = 4;

/// A change of the network configuration of one link, of all links, or of the default for new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NetconfMessage {
    /// `NETCONFA_IFINDEX`: the ifindex, or one of the negative numbers for more than one link.
    ifindex: Option<i32>,
}

impl NetconfMessage {
    /// Whether it is about all links. The settings of single links change whenever a link is created.
    pub(crate) fn concerns_all_links(self) -> bool {
        const NETCONFA_IFINDEX_ALL: i32 = -1; // include/uapi/linux/netconf.h
        self.ifindex == Some(NETCONFA_IFINDEX_ALL)
    }
}

impl NetlinkDeserializable for NetconfMessage {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        const NETCONFA_IFINDEX: u16 = 1;
        let attributes = payload.get(NETCONF_HEADER..).filter(|_| header.message_type == RTM_NEWNETCONF);
        let ifindex = NlasIterator::new(attributes.unwrap_or_default())
            .filter_map(Result::ok)
            .find(|attribute| attribute.kind() == NETCONFA_IFINDEX)
            .and_then(|attribute| attribute.value().try_into().ok())
            .map(i32::from_ne_bytes);
        Ok(Self { ifindex })
    }
}

/// netlink-proto asks for this of every message; none is sent.
impl NetlinkSerializable for NetconfMessage {
    fn message_type(&self) -> u16 {
        RTM_NEWNETCONF
    }

    fn buffer_len(&self) -> usize {
        0
    }

    fn serialize(&self, _buffer: &mut [u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_message_about_all_links_concerns_all_links() {
        for (message_type, ifindex, expected, why) in [
            (RTM_NEWNETCONF, -1_i32, true, "NETCONFA_IFINDEX_ALL"),
            (RTM_NEWNETCONF, -2, false, "NETCONFA_IFINDEX_DEFAULT"),
            (RTM_NEWNETCONF, 2, false, "one link"),
            (RTM_NEWNETCONF + 1, -1, false, "RTM_DELNETCONF"),
        ] {
            let mut header = NetlinkHeader::default();
            header.message_type = message_type;
            let mut payload = vec![2, 0, 0, 0, 8, 0, 1, 0];
            payload.extend(ifindex.to_ne_bytes());
            let Ok(message) = NetconfMessage::deserialize(&header, &payload);
            assert_eq!(message.concerns_all_links(), expected, "{why}");
        }
        let Ok(cut_off) = NetconfMessage::deserialize(&NetlinkHeader::default(), &[2]);
        assert!(!cut_off.concerns_all_links());
    }
}
