//! The numbers of nf_tables netlink that we use (linux/netfilter/nf_tables.h). Each module is named after the object or
//! expression of its attributes, and a constant after the kernel's name without its prefix: `chain::HOOK` is
//! `NFTA_CHAIN_HOOK`.

use crate::nfnetlink::{MessageType, NfnetlinkRequest};

/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const SUBSYSTEM: u8 = 10;
/// `NFPROTO_INET`: the family of our table.
pub(super) const INET: u8 = 1;
/// `NFTA_LIST_ELEM`: an element of a list.
pub(super) const LIST_ELEMENT: u16 = 1;
/// The attribute that names the table in all messages about objects (`NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, …).
pub(super) const OBJECT_TABLE: u16 = 1;

/// `enum nf_tables_msg_types`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NftMessage {
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

impl NftMessage {
    pub(super) const fn kind(self) -> MessageType {
        MessageType { subsystem: SUBSYSTEM, number: self as u8 }
    }

    /// A request in our family.
    pub(super) const fn request(self) -> NfnetlinkRequest {
        NfnetlinkRequest::new(self.kind(), INET)
    }
}

/// `enum nft_table_attributes` and `nft_table_flags`.
pub(super) mod table {
    pub(in crate::nft) const NAME: u16 = 1;
    pub(in crate::nft) const FLAGS: u16 = 2;
    pub(in crate::nft) const USERDATA: u16 = 6;
    /// The netlink port of the owner.
    pub(in crate::nft) const OWNER: u16 = 7;
    /// Only the socket that created the table may change it (since 5.12).
    pub(in crate::nft) const FLAG_OWNER: u32 = 2;
    /// The table outlives its owner and may be adopted (since 6.9).
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

/// `enum nft_expr_attributes`.
pub(super) mod expr {
    pub(in crate::nft) const NAME: u16 = 1;
    pub(in crate::nft) const DATA: u16 = 2;
}

/// `enum nft_registers`. Registers of 32 bits are numbered from `FIRST` (`NFT_REG32_00`); the parts of a concatenation follow
/// each other.
pub(super) mod register {
    pub(in crate::nft) const VERDICT: u32 = 0;
    pub(in crate::nft) const FIRST: u32 = 8;
}

/// `enum nft_immediate_attributes`.
pub(super) mod immediate {
    pub(in crate::nft) const DREG: u16 = 1;
    pub(in crate::nft) const DATA: u16 = 2;
}

/// `enum nft_meta_attributes`, `nft_meta_keys`.
pub(super) mod meta {
    pub(in crate::nft) const DREG: u16 = 1;
    pub(in crate::nft) const KEY: u16 = 2;
    pub(in crate::nft) const KEY_MARK: u32 = 3;
    pub(in crate::nft) const KEY_IIFNAME: u32 = 6;
    pub(in crate::nft) const KEY_OIFNAME: u32 = 7;
    pub(in crate::nft) const KEY_NFPROTO: u32 = 15;
    pub(in crate::nft) const KEY_L4PROTO: u32 = 16;
}

/// `enum nft_ct_attributes`, `nft_ct_keys`.
pub(super) mod ct {
    pub(in crate::nft) const DREG: u16 = 1;
    pub(in crate::nft) const KEY: u16 = 2;
    pub(in crate::nft) const KEY_STATE: u32 = 0;
    pub(in crate::nft) const KEY_MARK: u32 = 3;
}

/// `enum nft_payload_attributes`, `nft_payload_bases`.
pub(super) mod payload {
    pub(in crate::nft) const DREG: u16 = 1;
    pub(in crate::nft) const BASE: u16 = 2;
    pub(in crate::nft) const OFFSET: u16 = 3;
    pub(in crate::nft) const LEN: u16 = 4;
    pub(in crate::nft) const NETWORK_HEADER: u32 = 1;
    pub(in crate::nft) const TRANSPORT_HEADER: u32 = 2;
}

/// `enum nft_cmp_attributes`, `nft_cmp_ops`.
pub(super) mod cmp {
    pub(in crate::nft) const SREG: u16 = 1;
    pub(in crate::nft) const OP: u16 = 2;
    pub(in crate::nft) const DATA: u16 = 3;
    pub(in crate::nft) const EQ: u32 = 0;
    pub(in crate::nft) const NEQ: u32 = 1;
    pub(in crate::nft) const LTE: u32 = 3;
    pub(in crate::nft) const GTE: u32 = 5;
}

/// `enum nft_range_attributes`, `nft_range_ops`.
pub(super) mod range {
    pub(in crate::nft) const SREG: u16 = 1;
    pub(in crate::nft) const OP: u16 = 2;
    pub(in crate::nft) const FROM_DATA: u16 = 3;
    pub(in crate::nft) const TO_DATA: u16 = 4;
    pub(in crate::nft) const NEQ: u32 = 1;
}

/// `enum nft_bitwise_attributes`.
pub(super) mod bitwise {
    pub(in crate::nft) const SREG: u16 = 1;
    pub(in crate::nft) const DREG: u16 = 2;
    pub(in crate::nft) const LEN: u16 = 3;
    pub(in crate::nft) const MASK: u16 = 4;
    pub(in crate::nft) const XOR: u16 = 5;
}

/// `enum nft_lookup_attributes`, `nft_lookup_flags`.
pub(super) mod lookup {
    pub(in crate::nft) const SET: u16 = 1;
    pub(in crate::nft) const SREG: u16 = 2;
    pub(in crate::nft) const DREG: u16 = 3;
    pub(in crate::nft) const SET_ID: u16 = 4;
    pub(in crate::nft) const FLAGS: u16 = 5;
    pub(in crate::nft) const FLAG_INV: u32 = 1;
}

/// `enum nft_limit_attributes`, `nft_limit_type`.
pub(super) mod limit {
    pub(in crate::nft) const RATE: u16 = 1;
    pub(in crate::nft) const UNIT: u16 = 2;
    pub(in crate::nft) const BURST: u16 = 3;
    pub(in crate::nft) const TYPE: u16 = 4;
    pub(in crate::nft) const FLAGS: u16 = 5;
    /// `UNIT` in seconds.
    pub(in crate::nft) const PER_SECOND: u64 = 1;
    pub(in crate::nft) const TYPE_PACKETS: u32 = 0;
}

/// `enum nft_log_attributes`.
pub(super) mod log {
    pub(in crate::nft) const GROUP: u16 = 1;
    pub(in crate::nft) const PREFIX: u16 = 2;
    pub(in crate::nft) const SNAPLEN: u16 = 3;
}

/// `enum nft_masq_attributes`.
pub(super) mod masq {
    pub(in crate::nft) const FLAGS: u16 = 1;
    /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` (linux/netfilter/nf_nat.h).
    pub(in crate::nft) const FLAG_RANDOM_FULLY: u32 = 1 << 4;
}

/// `enum nft_gen_attributes`.
pub(super) mod generation {
    pub(in crate::nft) const ID: u16 = 1;
    pub(in crate::nft) const PROC_NAME: u16 = 3;
}

/// `NFTA_OBJ_NAME` and `NFTA_FLOWTABLE_NAME`.
pub(super) const OTHER_NAME: u16 = 2;

/// User data, which `nft` stores with objects to print them as they were written (libnftnl/udata.h): a byte of type, a byte
/// of length, the payload; numbers in host byte order.
pub(super) mod userdata {
    /// Of a rule: the comment.
    pub(in crate::nft) const RULE_COMMENT: u8 = 0;
    /// Of a chain: the comment.
    pub(in crate::nft) const CHAIN_COMMENT: u8 = 0;
    /// Of a set: the byte order of its key, and of a map's data.
    pub(in crate::nft) const SET_KEY_ORDER: u8 = 0;
    pub(in crate::nft) const SET_DATA_ORDER: u8 = 1;
    /// Of a set: the `typeof` of its key.
    pub(in crate::nft) const SET_KEY_TYPEOF: u8 = 3;
    /// Of a map: whether its data are intervals.
    pub(in crate::nft) const SET_DATA_INTERVAL: u8 = 6;
    /// Of a set or a map: the comment.
    pub(in crate::nft) const SET_COMMENT: u8 = 7;
    pub(in crate::nft) const ORDER_HOST: u32 = 1;
    pub(in crate::nft) const ORDER_NETWORK: u32 = 2;
    /// Of an element: its interval is open-ended.
    pub(in crate::nft) const ELEMENT_FLAGS: u8 = 1;
    pub(in crate::nft) const ELEMENT_OPEN: u32 = 1;

    /// Appends one entry.
    pub(in crate::nft) fn entry(kind: u8, payload: &[u8], to: &mut Vec<u8>) {
        let length = u8::try_from(payload.len()).expect("our user data is a few bytes");
        to.extend([kind, length]);
        to.extend(payload);
    }

    /// Appends a comment, with its terminating NUL.
    pub(in crate::nft) fn comment(kind: u8, text: &str, to: &mut Vec<u8>) {
        entry(kind, format!("{text}\0").as_bytes(), to);
    }

    /// The entries of user data, of ours or of others; a truncated one ends the iteration.
    pub(in crate::nft) fn entries(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
        std::iter::from_fn(move || {
            let (kind, length) = (*bytes.first()?, usize::from(*bytes.get(1)?));
            let payload = bytes.get(2..2 + length)?;
            bytes = &bytes[2 + length..];
            Some((kind, payload))
        })
    }
}
