//! The few bytes of nf_tables netlink that are read here (linux/netfilter/nfnetlink.h, nf_tables.h): whose table an
//! object is in, and generations.

/// `struct nlmsghdr`, and behind it `struct nfgenmsg`.
const HEADER: usize = 16;
const GEN_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`.
const NEW_GENERATION: u8 = 15;
/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFTA_GEN_ID`, and the attribute that names the table in all messages about objects (`NFTA_TABLE_NAME`,
/// `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`, `NFTA_SET_ELEM_LIST_TABLE`, …).
const FIRST: u16 = 1;
/// `NFTA_GEN_PROC_NAME`.
const PROCESS_NAME: u16 = 3;

/// A request for the current generation: `NFT_MSG_GETGEN` (16) with `NLM_F_REQUEST` (1). Sequence, port and
/// `struct nfgenmsg` are zero.
pub(super) fn get_generation() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + GEN_HEADER);
    bytes.extend(20_u32.to_ne_bytes());
    bytes.extend(u16::from_be_bytes([SUBSYSTEM, 16]).to_ne_bytes());
    bytes.extend(1_u16.to_ne_bytes());
    bytes.resize(HEADER + GEN_HEADER, 0);
    bytes
}

/// A message of nf_tables.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    /// Something in a table of the `inet` family.
    Object {
        /// The table.
        table: &'a str,
    },
    /// A new generation of all tables; the end of a transaction.
    Generation {
        /// Its number.
        generation: u32,
        /// The process that made it.
        process: &'a str,
    },
}

/// The messages of a datagram that are of interest. Of one that is cut off or odd, what can be read.
pub(super) fn parse(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        loop {
            let length = u32::from_ne_bytes(datagram.get(..4)?.try_into().ok()?) as usize;
            let message = datagram.get(..length).filter(|_| length >= HEADER)?;
            datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let Some(message) = parse_message(message) {
                return Some(message);
            }
        }
    })
}

fn parse_message(message: &[u8]) -> Option<Message<'_>> {
    let [kind, subsystem] = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?).to_le_bytes();
    let family = *message.get(HEADER)?;
    let attributes = message.get(HEADER + GEN_HEADER..)?;
    if subsystem != SUBSYSTEM {
        None
    } else if kind == NEW_GENERATION {
        let generation = attribute(attributes, FIRST)?.try_into().ok().map(u32::from_be_bytes)?;
        let process = attribute(attributes, PROCESS_NAME).and_then(text).unwrap_or_default();
        Some(Message::Generation { generation, process })
    } else if family == INET {
        attribute(attributes, FIRST).and_then(text).map(|table| Message::Object { table })
    } else {
        None
    }
}

/// The payload of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let payload = attributes.get(ATTRIBUTE_HEADER..length)?;
        if kind == wanted {
            return Some(payload);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// A text up to its NUL.
fn text(payload: &[u8]) -> Option<&str> {
    std::str::from_utf8(payload.split(|b| *b == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with attributes that are a kind and a payload.
    fn message(kind: u8, family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        for (kind, payload) in attributes {
            body.extend(u16::try_from(ATTRIBUTE_HEADER + payload.len()).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*payload);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut all = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        all.extend(u16::from_be_bytes([SUBSYSTEM, kind]).to_ne_bytes());
        all.resize(HEADER, 0);
        all.extend(body);
        all
    }

    #[test]
    fn a_transaction_is_objects_and_then_a_generation() {
        let mut datagram = message(6, INET, &[(1, b"towpath\0"), (2, b"chain\0")]);
        datagram.extend(message(6, 2, &[(1, b"towpath\0")]));
        datagram.extend(message(NEW_GENERATION, 0, &[(1, &7_u32.to_be_bytes()), (2, &[0; 4]), (3, b"nft\0")]));
        let expected =
            vec![Message::Object { table: "towpath" }, Message::Generation { generation: 7, process: "nft" }];
        assert_eq!(parse(&datagram).collect::<Vec<_>>(), expected, "a table of another family is not ours");
    }

    #[test]
    fn whatever_is_cut_off_ends_quietly() {
        let whole = message(NEW_GENERATION, 0, &[(1, &7_u32.to_be_bytes()), (3, b"nft\0")]);
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]).count(), 0, "{length} bytes");
        }
        assert_eq!(parse(&[0; 64]).count(), 0, "a length of zero would go on for ever");
    }
}
