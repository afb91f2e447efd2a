//! The numbers of nf_tables netlink that we use (linux/netfilter/nf_tables.h). Attributes are named after their object.

use crate::nfnetlink::{MessageType, NfnetlinkRequest};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u8 = 10;
/// `NFPROTO_INET`: the family of our table.
pub(super) const INET: u8 = 1;
/// `NFTA_LIST_ELEM`: what is in a list.
pub(super) const ITEM: u16 = 1;
/// The attribute that names the table in all messages about objects (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, …).
pub(super) const TABLE_OF: u16 = 1;

/// `enum nf_tables_msg_types`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    NewTable = 0,
    GetTable = 1,
    DelTable = 2,
    NewChain = 3,
    GetChain = 4,
    DelChain = 5,
    NewRule = 6,
    GetRule = 7,
    DelRule = 8,
    NewSet = 9,
    GetSet = 10,
    DelSet = 11,
    NewElement = 12,
    GetElement = 13,
    DelElement = 14,
    NewGeneration = 15,
    GetGeneration = 16,
    GetObject = 19,
    GetFlowtable = 23,
}

impl Message {
    pub(super) const fn kind(self) -> MessageType {
        MessageType { subsystem: SUBSYSTEM, number: self as u8 }
    }

    /// A request about our family.
    pub(super) const fn request(self) -> NfnetlinkRequest {
        NfnetlinkRequest::new(self.kind(), INET)
    }
}

/// `enum nft_table_attributes` and `nft_table_flags`.
pub(super) mod table {
    pub(in crate::nft) const NAME: u16 = 1;
    pub(in crate::nft) const FLAGS: u16 = 2;
    pub(in crate::nft) const USERDATA: u16 = 6;
    /// The port of the socket that owns it.
    pub(in crate::nft) const OWNER: u16 = 7;
    /// Only the socket that made it changes it (since 5.12).
    pub(in crate::nft) const FLAG_OWNER: u32 = 2;
    /// It outlives its owner and may be taken over (since 6.9).
    pub(in crate::nft) const FLAG_PERSIST: u32 = 4;
}

/// `enum nft_chain_attributes`, `nft_hook_attributes`.
pub(super) mod chain {
    pub(in crate::nft) const NAME: u16 = 3;
    pub(in crate::nft) const HOOK: u16 = 4;
    pub(in crate::nft) const POLICY: u16 = 5;
    pub(in crate::nft) const TYPE: u16 = 7;
    pub(in crate::nft) const FLAGS: u16 = 10;
    pub(in crate::nft) const USERDATA: u16 = 12;
    pub(in crate::nft) const HOOK_NUMBER: u16 = 1;
    pub(in crate::nft) const HOOK_PRIORITY: u16 = 2;
    pub(in crate::nft) const HOOK_DEVICE: u16 = 3;
    pub(in crate::nft) const HOOK_DEVICES: u16 = 4;
    /// `NF_ACCEPT`.
    pub(in crate::nft) const POLICY_ACCEPT: u32 = 1;
    /// `NFT_CHAIN_BASE`.
    pub(in crate::nft) const FLAG_BASE: u32 = 1;
}

/// `enum nft_rule_attributes`.
pub(super) mod rule {
    pub(in crate::nft) const CHAIN: u16 = 2;
    pub(in crate::nft) const EXPRESSIONS: u16 = 4;
    pub(in crate::nft) const USERDATA: u16 = 7;
}

/// `enum nft_set_attributes`, `nft_set_flags`, `nft_set_desc_attributes`, `nft_set_field_attributes`.
pub(super) mod set {
    pub(in crate::nft) const NAME: u16 = 2;
    pub(in crate::nft) const FLAGS: u16 = 3;
    pub(in crate::nft) const KEY_TYPE: u16 = 4;
    pub(in crate::nft) const KEY_LEN: u16 = 5;
    pub(in crate::nft) const DATA_TYPE: u16 = 6;
    pub(in crate::nft) const DATA_LEN: u16 = 7;
    pub(in crate::nft) const POLICY: u16 = 8;
    pub(in crate::nft) const DESC: u16 = 9;
    pub(in crate::nft) const ID: u16 = 10;
    pub(in crate::nft) const TIMEOUT: u16 = 11;
    pub(in crate::nft) const GC_INTERVAL: u16 = 12;
    pub(in crate::nft) const USERDATA: u16 = 13;
    pub(in crate::nft) const OBJECT_TYPE: u16 = 15;
    pub(in crate::nft) const EXPRESSION: u16 = 17;
    pub(in crate::nft) const EXPRESSIONS: u16 = 18;
    pub(in crate::nft) const DESC_SIZE: u16 = 1;
    pub(in crate::nft) const DESC_CONCAT: u16 = 2;
    pub(in crate::nft) const FIELD_LEN: u16 = 1;
    pub(in crate::nft) const FLAG_ANONYMOUS: u32 = 0x1;
    pub(in crate::nft) const FLAG_CONSTANT: u32 = 0x2;
    pub(in crate::nft) const FLAG_INTERVAL: u32 = 0x4;
    pub(in crate::nft) const FLAG_MAP: u32 = 0x8;
    pub(in crate::nft) const FLAG_CONCAT: u32 = 0x80;
    /// `NFT_DATA_VERDICT`.
    pub(in crate::nft) const DATA_VERDICT: u32 = 0xffff_ff00;
}

/// `enum nft_set_elem_attributes`, `nft_set_elem_list_attributes`, `nft_set_elem_flags`.
pub(super) mod element {
    pub(in crate::nft) const LIST_SET: u16 = 2;
    pub(in crate::nft) const LIST_ELEMENTS: u16 = 3;
    pub(in crate::nft) const LIST_SET_ID: u16 = 4;
    pub(in crate::nft) const KEY: u16 = 1;
    pub(in crate::nft) const DATA: u16 = 2;
    pub(in crate::nft) const FLAGS: u16 = 3;
    pub(in crate::nft) const USERDATA: u16 = 6;
    pub(in crate::nft) const KEY_END: u16 = 10;
    pub(in crate::nft) const FLAG_INTERVAL_END: u32 = 1;
}

/// `enum nft_data_attributes`, `nft_verdict_attributes`, `nft_verdicts` and netfilter's own verdicts.
pub(super) mod data {
    pub(in crate::nft) const VALUE: u16 = 1;
    pub(in crate::nft) const VERDICT: u16 = 2;
    pub(in crate::nft) const CODE: u16 = 1;
    pub(in crate::nft) const CHAIN: u16 = 2;
    pub(in crate::nft) const DROP: i32 = 0;
    pub(in crate::nft) const ACCEPT: i32 = 1;
    pub(in crate::nft) const JUMP: i32 = -3;
    pub(in crate::nft) const GOTO: i32 = -4;
    pub(in crate::nft) const RETURN: i32 = -5;
}

/// What `nft` keeps beside the objects to print them as they were written (libnftnl/udata.h): a byte of kind, a byte of
/// length, the payload; numbers in the host's order.
pub(super) mod userdata {
    /// Of a rule: its comment.
    pub(in crate::nft) const RULE_COMMENT: u8 = 0;
    /// Of a chain: its comment.
    pub(in crate::nft) const CHAIN_COMMENT: u8 = 0;
    /// Of a set: the order of the bytes of its key, and of a map's data.
    pub(in crate::nft) const SET_KEY_ORDER: u8 = 0;
    pub(in crate::nft) const SET_DATA_ORDER: u8 = 1;
    /// Of a set: what its key was declared as with `typeof`.
    pub(in crate::nft) const SET_KEY_TYPEOF: u8 = 3;
    /// Of a map: whether its data are intervals.
    pub(in crate::nft) const SET_DATA_INTERVAL: u8 = 6;
    /// Of a set or a map: its comment.
    pub(in crate::nft) const SET_COMMENT: u8 = 7;
    pub(in crate::nft) const ORDER_HOST: u32 = 1;
    pub(in crate::nft) const ORDER_NETWORK: u32 = 2;
    /// Of an element: that its interval goes on to the end.
    pub(in crate::nft) const ELEMENT_FLAGS: u8 = 1;
    pub(in crate::nft) const ELEMENT_OPEN: u32 = 1;

    /// One entry.
    pub(in crate::nft) fn entry(kind: u8, payload: &[u8], to: &mut Vec<u8>) {
        let length = u8::try_from(payload.len()).expect("what we keep beside objects is a few bytes");
        to.extend([kind, length]);
        to.extend(payload);
    }

    /// A comment, which ends with a zero byte.
    pub(in crate::nft) fn comment(kind: u8, text: &str, to: &mut Vec<u8>) {
        entry(kind, format!("{text}\0").as_bytes(), to);
    }

    /// The entries of bytes of any origin.
    pub(in crate::nft) fn entries(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
        std::iter::from_fn(move || {
            let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
            let payload = bytes.get(2..2 + length)?;
            bytes = &bytes[2 + length..];
            Some((kind, payload))
        })
    }
}
