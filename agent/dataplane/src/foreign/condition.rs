//! One match statement of `nft -j` as a condition of the evaluation.

use std::net::IpAddr;

use ipnet::IpNet;
use nftables::{
    expr::{CT, Expression, Meta, MetaKey, NamedExpression, Payload, PayloadField, Prefix, SetItem},
    stmt::{Match, Operator},
};
use towpath_core::{
    foreign_firewall::{Comparison, FlowSide, ForeignCondition},
    model::Family,
};

/// Headers and fields that a part of all connections has.
const TRANSPORTS: [&str; 12] =
    ["ah", "comp", "dccp", "esp", "icmp", "icmpv6", "igmp", "sctp", "tcp", "th", "udp", "udplite"];

/// The condition of a match; `None` if it holds for the first packet of every connection between pods.
pub(super) fn read(condition: &Match<'_>) -> Option<ForeignCondition> {
    let comparison = match condition.op {
        Operator::EQ | Operator::IN => Comparison::Equal,
        Operator::NEQ => Comparison::NotEqual,
        _ => return Some(ForeignCondition::Unknown),
    };
    let right = &condition.right;
    match &condition.left {
        Expression::Named(NamedExpression::Meta(Meta { key })) => meta(*key, comparison, right),
        Expression::Named(NamedExpression::Payload(Payload::PayloadField(field))) => {
            Some(payload(field, comparison, right))
        }
        Expression::Named(NamedExpression::CT(CT { key, .. })) => tracking(key, comparison, right),
        _ => Some(ForeignCondition::Unknown),
    }
}

fn meta(key: MetaKey, comparison: Comparison, right: &Expression<'_>) -> Option<ForeignCondition> {
    let interface = |direction| match texts(right) {
        Some(names) => ForeignCondition::Interface(direction, comparison, names),
        None => ForeignCondition::Unknown,
    };
    Some(match key {
        MetaKey::Iif | MetaKey::Iifname => interface(FlowSide::From),
        MetaKey::Oif | MetaKey::Oifname => interface(FlowSide::To),
        MetaKey::Nfproto | MetaKey::Protocol => match texts(right).as_deref() {
            Some([family]) if family == "ipv4" || family == "ip" => ForeignCondition::Family(comparison, Family::V4),
            Some([family]) if family == "ipv6" || family == "ip6" => ForeignCondition::Family(comparison, Family::V6),
            _ => ForeignCondition::Unknown,
        },
        MetaKey::L4proto => ForeignCondition::Partial,
        MetaKey::Pkttype => match (comparison, texts(right).as_deref()) {
            (Comparison::Equal, Some([kind])) if kind == "host" || kind == "unicast" => return None,
            _ => ForeignCondition::Unknown,
        },
        _ => ForeignCondition::Unknown,
    })
}

fn payload(
    PayloadField { protocol, field }: &PayloadField<'_>,
    comparison: Comparison,
    right: &Expression<'_>,
) -> ForeignCondition {
    let address = |direction| match networks(right) {
        Some(nets) => ForeignCondition::Address(direction, comparison, nets),
        None => ForeignCondition::Unknown,
    };
    match (&**protocol, &**field) {
        ("ip" | "ip6", "saddr") => address(FlowSide::From),
        ("ip" | "ip6", "daddr") => address(FlowSide::To),
        ("ip", "protocol") | ("ip6", "nexthdr") => ForeignCondition::Partial,
        (transport, _) if TRANSPORTS.contains(&transport) => ForeignCondition::Partial,
        _ => ForeignCondition::Unknown,
    }
}

/// Of the first packet of a connection between pods: its state is new, its direction the original one, and nobody has
/// translated its addresses.
fn tracking(key: &str, comparison: Comparison, right: &Expression<'_>) -> Option<ForeignCondition> {
    let holds = |value: &str| {
        let has = texts(right)?.iter().any(|text| text == value);
        Some(has == (comparison == Comparison::Equal))
    };
    let holds = match key {
        "state" => holds("new"),
        "direction" => holds("original"),
        // Flags: of those that a new connection has, none is asked for by name.
        "status" => texts(right).filter(|_| comparison == Comparison::Equal).map(|_| false),
        _ => None,
    };
    match holds {
        Some(true) => None,
        Some(false) => Some(ForeignCondition::Partial),
        None => Some(ForeignCondition::Unknown),
    }
}

/// Values in the order in which they stand; `None` if one is not of the kind that is asked for.
fn values<T>(right: &Expression<'_>, value: &impl Fn(&Expression<'_>) -> Option<T>) -> Option<Vec<T>> {
    let item = |item: &SetItem<'_>| match item {
        SetItem::Element(element) => value(element),
        SetItem::Mapping(..) | SetItem::MappingStatement(..) => None,
    };
    match right {
        Expression::Named(NamedExpression::Set(items)) => items.iter().map(item).collect(),
        Expression::List(items) => items.iter().map(value).collect(),
        single => value(single).map(|value| vec![value]),
    }
}

fn texts(right: &Expression<'_>) -> Option<Vec<String>> {
    // What begins with @ is a named set, whose elements are not read.
    let text = |value: &Expression<'_>| match value {
        Expression::String(text) if !text.starts_with('@') => Some(text.to_string()),
        _ => None,
    };
    values(right, &text)
}

fn networks(right: &Expression<'_>) -> Option<Vec<IpNet>> {
    let address = |value: &Expression<'_>| match value {
        Expression::String(text) => text.parse::<IpAddr>().ok(),
        _ => None,
    };
    let network = |value: &Expression<'_>| match value {
        Expression::Named(NamedExpression::Prefix(Prefix { addr, len })) => {
            IpNet::new(address(addr)?, u8::try_from(*len).ok()?).ok()
        }
        single => address(single).map(IpNet::from),
    };
    values(right, &network)
}
