//! Encodes the keys of elements: the parts of a concatenation follow each other, each padded to a multiple of four bytes.

use std::net::IpAddr;

use ipnet::IpNet;
use towpath_core::{
    names::IfName,
    ruleset::{Element, KeyType, Value},
};

/// The first and the last key of an element, inclusive; equal for a single value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bounds {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
}

/// The type of a key in nft (`enum datatypes`), which the kernel stores with a set.
pub(super) const fn nft_type(key: KeyType) -> u32 {
    match key {
        KeyType::Ipv4 => 7,
        KeyType::Ipv6 => 8,
        KeyType::Proto => 12,
        KeyType::Port => 13,
        KeyType::IfName => 41,
    }
}

const ALL: [KeyType; 5] = [KeyType::Ipv4, KeyType::Ipv6, KeyType::Proto, KeyType::Port, KeyType::IfName];

/// How many bits of the type a part of a concatenation has.
const TYPE_BITS: u32 = 6;

/// The type of a whole key.
pub(super) fn nft_types(key: &[KeyType]) -> u32 {
    key.iter().fold(0, |all, part| all << TYPE_BITS | nft_type(*part))
}

/// The parts of a key by its type; `None` if one of them is unknown.
pub(super) fn parts(mut types: u32) -> Option<Vec<KeyType>> {
    let mut key = Vec::new();
    while types != 0 {
        let part = types & ((1 << TYPE_BITS) - 1);
        key.push(ALL.into_iter().find(|key| nft_type(*key) == part)?);
        types >>= TYPE_BITS;
    }
    key.reverse();
    (!key.is_empty()).then_some(key)
}

/// The length of one part in bytes.
pub(super) const fn length(part: KeyType) -> usize {
    match part {
        KeyType::Ipv4 => 4,
        KeyType::Ipv6 | KeyType::IfName => 16,
        KeyType::Proto => 1,
        KeyType::Port => 2,
    }
}

/// The length of a whole key in bytes.
pub(super) fn whole_length(key: &[KeyType]) -> usize {
    match key {
        [only] => length(*only),
        parts => parts.iter().map(|part| length(*part).next_multiple_of(4)).sum(),
    }
}

/// Encodes an element.
pub(super) fn bounds(element: &Element) -> Bounds {
    let mut all = Bounds { first: Vec::new(), last: Vec::new() };
    for value in element {
        let part = value_bounds(value);
        for (all, part) in [(&mut all.first, part.first), (&mut all.last, part.last)] {
            all.extend(part);
            if element.len() > 1 {
                all.resize(all.len().next_multiple_of(4), 0);
            }
        }
    }
    all
}

/// Encodes one value.
pub(super) fn value_bounds(value: &Value) -> Bounds {
    let single = |bytes: Vec<u8>| Bounds { last: bytes.clone(), first: bytes };
    match value {
        Value::Addr(addr) => single(address(*addr)),
        Value::Net(net) => Bounds { first: address(net.network()), last: address(net.broadcast()) },
        Value::IfName(name) => {
            let mut bytes = name.as_str().as_bytes().to_vec();
            bytes.resize(length(KeyType::IfName), 0);
            single(bytes)
        }
        Value::Proto(number) => single(vec![*number]),
        Value::Port(port) => single(port.to_be_bytes().to_vec()),
        Value::PortRange(first, last) => {
            Bounds { first: first.to_be_bytes().to_vec(), last: last.to_be_bytes().to_vec() }
        }
    }
}

pub(super) fn address(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// The next key; `None` after the last one.
pub(super) fn successor(key: &[u8]) -> Option<Vec<u8>> {
    let mut next = key.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

/// The previous key; `None` before the first one.
pub(super) fn predecessor(key: &[u8]) -> Option<Vec<u8>> {
    let mut previous = key.to_vec();
    for byte in previous.iter_mut().rev() {
        *byte = byte.wrapping_sub(1);
        if *byte != 0xff {
            return Some(previous);
        }
    }
    None
}

/// Decodes an element; `None` if we would not have encoded it so.
pub(super) fn element(key: &[KeyType], bounds: &Bounds) -> Option<Element> {
    if bounds.first.len() != whole_length(key) || bounds.last.len() != whole_length(key) {
        return None;
    }
    let mut at = 0;
    let part = |part: &KeyType| {
        let here = at..at + length(*part);
        at = here.end.next_multiple_of(4);
        value(*part, &bounds.first[here.clone()], &bounds.last[here])
    };
    key.iter().map(part).collect()
}

fn value(part: KeyType, first: &[u8], last: &[u8]) -> Option<Value> {
    match part {
        KeyType::Ipv4 | KeyType::Ipv6 => network(first, last),
        KeyType::IfName => {
            let end = first.iter().position(|byte| *byte == 0)?;
            let name = std::str::from_utf8(&first[..end]).ok()?;
            let name = (first == last && first[end..].iter().all(|byte| *byte == 0)).then_some(name)?;
            IfName::new(name).ok().map(Value::IfName)
        }
        KeyType::Proto => (first == last).then(|| Value::Proto(first[0])),
        KeyType::Port => {
            let port = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
            Some(if first == last { Value::Port(port(first)) } else { Value::PortRange(port(first), port(last)) })
        }
    }
}

/// The network from the first to the last address, if there is one.
fn network(first: &[u8], last: &[u8]) -> Option<Value> {
    let addr: IpAddr = match first.len() {
        4 => <[u8; 4]>::try_from(first).ok()?.into(),
        _ => <[u8; 16]>::try_from(first).ok()?.into(),
    };
    if first == last {
        return Some(Value::Addr(addr));
    }
    let common: u32 = first.iter().zip(last).map(|(a, b)| (a ^ b).leading_zeros()).take_while(|n| *n == 8).sum();
    let byte = usize::try_from(common / 8).ok()?;
    let length = common + (first[byte] ^ last[byte]).leading_zeros();
    let net = IpNet::new(addr, u8::try_from(length).ok()?).ok()?;
    (address(net.network()) == first && address(net.broadcast()) == last).then_some(Value::Net(net))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_element_is_decoded_as_the_same_element() {
        use KeyType::{IfName as Interface, Ipv4, Ipv6, Port, Proto};
        let (net, addr) = (|n: &str| Value::Net(n.parse().unwrap()), |a: &str| Value::Addr(a.parse().unwrap()));
        let interface = Value::IfName(IfName::new("a23456789012345").unwrap());
        for (key, element) in [
            (vec![Ipv4], vec![net("0.0.0.0/0")]),
            (vec![Ipv4], vec![net("10.128.0.0/9")]),
            (vec![Ipv4], vec![addr("255.255.255.255")]),
            (vec![Ipv6], vec![net("2001:db8::/65")]),
            (vec![Port], vec![Value::PortRange(80, 95)]),
            (vec![Interface, Ipv6], vec![interface, addr("::1")]),
            (vec![Ipv4, Proto, Port], vec![net("10.0.0.0/31"), Value::Proto(6), Value::PortRange(0, 65535)]),
        ] {
            let made = bounds(&element);
            assert_eq!(made.first.len(), whole_length(&key), "{element:?}");
            assert_eq!(super::element(&key, &made), Some(element));
            assert_eq!(parts(nft_types(&key)), Some(key));
        }
    }

    #[test]
    fn what_we_would_not_encode_is_not_decoded() {
        let range = |first: &[u8], last: &[u8]| Bounds { first: first.to_vec(), last: last.to_vec() };
        for (key, bounds, why) in [
            (vec![KeyType::Ipv4], range(&[10, 0, 0, 1], &[10, 0, 0, 2]), "a range that is no network"),
            (vec![KeyType::Ipv4], range(&[10, 0, 0], &[10, 0, 0]), "a key of another length"),
            (vec![KeyType::Proto], range(&[1], &[2]), "a range of protocols"),
            (vec![KeyType::IfName], range(&[b'a'; 16], &[b'a'; 16]), "no end"),
            (vec![KeyType::IfName], range(&[0; 16], &[0; 16]), "no name"),
        ] {
            assert_eq!(element(&key, &bounds), None, "{why}");
        }
        assert_eq!(parts(19), None, "a mark");
        assert_eq!(parts(0), None, "nothing");
    }

    #[test]
    fn keys_have_successors_and_predecessors_but_at_the_ends() {
        assert_eq!(successor(&[10, 0, 255, 255]), Some(vec![10, 1, 0, 0]));
        assert_eq!(predecessor(&[10, 1, 0, 0]), Some(vec![10, 0, 255, 255]));
        assert_eq!((successor(&[255, 255]), predecessor(&[0, 0])), (None, None));
    }
}
