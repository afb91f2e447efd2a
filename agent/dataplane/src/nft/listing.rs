//! nft's JSON listing of our table. What we do not know is not skipped but told as foreign: in our table, it must go.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::Value as Json;
use towpath_core::{
    model::Family,
    names::{ChainName, IfName, SetName},
    ruleset::{
        Base, ChainType, Element, Foreign, Hook, Installed, InstalledChain, KeyType, Lookup, Set, Value, Verdict,
        VerdictMap,
    },
};

type Object = serde_json::Map<String, Json>;

pub(super) fn parse(json: &[u8]) -> Result<Installed, serde_json::Error> {
    let listing: Listing = serde_json::from_slice(json)?;
    let mut all = Installed::default();
    let mut rules: BTreeMap<String, Vec<Rule>> = BTreeMap::new();
    for item in listing.nftables {
        match item {
            Item::Metainfo => {}
            Item::Table(table) if has_only(&table, &["family", "name", "handle"]) => {}
            Item::Table(_) => _ = all.foreign.insert(Foreign::Other("flags or a comment of the table".to_owned())),
            Item::Set(object) => add_set(&mut all, &object),
            Item::Map(object) => add_map(&mut all, &object),
            Item::Chain(object) => add_chain(&mut all, &object),
            Item::Rule(rule) => rules.entry(rule.chain.clone()).or_default().push(rule),
            Item::Other(kind) => _ = all.foreign.insert(Foreign::Other(kind)),
        }
    }
    let chains = all.chains.into_iter().map(|(name, chain)| {
        let rules = rules.remove(name.as_str()).unwrap_or_default();
        let rules = rules.into_iter().map(|rule| rule.comment?.parse().ok()).collect();
        (name, InstalledChain { rules, ..chain })
    });
    all.chains = chains.collect();
    Ok(all)
}

#[derive(Deserialize)]
struct Listing {
    nftables: Vec<Item>,
}

/// One object of the listing. Rules' expressions are passed over: their comments say what they are.
enum Item {
    Metainfo,
    Table(Object),
    Set(Object),
    Map(Object),
    Chain(Object),
    Rule(Rule),
    Other(String),
}

#[derive(Deserialize)]
struct Rule {
    chain: String,
    comment: Option<String>,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object whose only key is its kind")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Item, A::Error> {
        let kind: String = map.next_key()?.unwrap_or_default();
        let item = match kind.as_str() {
            "metainfo" => map.next_value::<IgnoredAny>().map(|_| Item::Metainfo)?,
            "table" => Item::Table(map.next_value()?),
            "set" => Item::Set(map.next_value()?),
            "map" => Item::Map(map.next_value()?),
            "chain" => Item::Chain(map.next_value()?),
            "rule" => Item::Rule(map.next_value()?),
            _ => {
                let object: Object = map.next_value()?;
                Item::Other(format!("{kind} {}", text(&object, "name")))
            }
        };
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(item)
    }
}

fn text<'a>(object: &'a Object, key: &str) -> &'a str {
    object.get(key).and_then(Json::as_str).unwrap_or_default()
}

fn has_only(object: &Object, keys: &[&str]) -> bool {
    object.keys().all(|key| keys.contains(&key.as_str()))
}

/// A name that our own could not be: nothing of ours has it, and a script may not be able to spell it.
fn odd_name(kind: &str, name: &str) -> Foreign {
    Foreign::Other(format!("{kind} {name:?}"))
}

fn add_set(all: &mut Installed, object: &Object) {
    let name = text(object, "name");
    let Ok(name) = SetName::new(name) else {
        all.foreign.insert(odd_name("set", name));
        return;
    };
    match as_set(object) {
        Some(set) => _ = all.sets.insert(name, set),
        None => _ = all.foreign.insert(Foreign::Set(name)),
    }
}

fn as_set(object: &Object) -> Option<Set> {
    if !has_only(object, &["family", "name", "table", "type", "handle", "flags", "elem"]) {
        return None;
    }
    // One flag alone is a text for some releases of nft, a list for others.
    let lookup = match object.get("flags") {
        None => Lookup::Hash,
        Some(Json::String(flag)) if flag == "interval" => Lookup::Interval,
        Some(Json::Array(flags)) if flags.as_slice() == ["interval"] => Lookup::Interval,
        Some(_) => return None,
    };
    let key = key_types(object)?;
    let elements = elements(object)?.iter().map(|json| as_element(&key, json)).collect::<Option<_>>()?;
    Some(Set { key, lookup, elements })
}

fn add_map(all: &mut Installed, object: &Object) {
    let name = text(object, "name");
    let Ok(name) = SetName::new(name) else {
        all.foreign.insert(odd_name("map", name));
        return;
    };
    match as_map(object) {
        Some(map) => _ = all.maps.insert(name, map),
        None => _ = all.foreign.insert(Foreign::Map(name)),
    }
}

fn as_map(object: &Object) -> Option<VerdictMap> {
    if !has_only(object, &["family", "name", "table", "type", "handle", "map", "elem"])
        || text(object, "map") != "verdict"
    {
        return None;
    }
    let key = key_types(object)?;
    let pair = |json: &Json| match json.as_array()?.as_slice() {
        [element, verdict] => Some((as_element(&key, element)?, as_verdict(verdict)?)),
        _ => None,
    };
    let elements = elements(object)?.iter().map(pair).collect::<Option<_>>()?;
    Some(VerdictMap { key, elements })
}

fn elements(object: &Object) -> Option<&[Json]> {
    match object.get("elem") {
        None => Some(&[]),
        Some(json) => json.as_array().map(Vec::as_slice),
    }
}

fn key_types(object: &Object) -> Option<Vec<KeyType>> {
    let one = |json: &Json| match json.as_str()? {
        "ipv4_addr" => Some(KeyType::Ipv4),
        "ipv6_addr" => Some(KeyType::Ipv6),
        "ifname" => Some(KeyType::IfName),
        "inet_proto" => Some(KeyType::Proto),
        "inet_service" => Some(KeyType::Port),
        _ => None,
    };
    match object.get("type")? {
        Json::Array(parts) => parts.iter().map(one).collect(),
        json => one(json).map(|key| vec![key]),
    }
}

fn as_element(key: &[KeyType], json: &Json) -> Option<Element> {
    match (key, json.get("concat").and_then(Json::as_array)) {
        ([only], None) => as_value(*only, json).map(|value| vec![value]),
        (key, Some(parts)) if key.len() == parts.len() => {
            key.iter().zip(parts).map(|(k, json)| as_value(*k, json)).collect()
        }
        _ => None,
    }
}

fn as_value(key: KeyType, json: &Json) -> Option<Value> {
    match key {
        KeyType::Ipv4 => as_address(json).filter(|value| family(value) == Some(Family::V4)),
        KeyType::Ipv6 => as_address(json).filter(|value| family(value) == Some(Family::V6)),
        KeyType::IfName => IfName::new(json.as_str()?).ok().map(Value::IfName),
        KeyType::Proto => json.as_u64()?.try_into().ok().map(Value::Proto),
        KeyType::Port => match json.get("range").and_then(Json::as_array).map(Vec::as_slice) {
            Some([first, last]) => Some(Value::PortRange(as_port(first)?, as_port(last)?)),
            Some(_) => None,
            None => as_port(json).map(Value::Port),
        },
    }
}

fn as_port(json: &Json) -> Option<u16> {
    json.as_u64()?.try_into().ok()
}

fn as_address(json: &Json) -> Option<Value> {
    if let Some(text) = json.as_str() {
        return text.parse().ok().map(Value::Addr);
    }
    let prefix = json.get("prefix")?;
    let addr: IpAddr = prefix.get("addr")?.as_str()?.parse().ok()?;
    let length = prefix.get("len")?.as_u64()?.try_into().ok()?;
    IpNet::new(addr, length).ok().map(Value::Net)
}

const fn family(value: &Value) -> Option<Family> {
    match value {
        Value::Addr(addr) => Some(Family::of(*addr)),
        Value::Net(net) => Some(Family::of_net(*net)),
        Value::IfName(_) | Value::Proto(_) | Value::Port(_) | Value::PortRange(..) => None,
    }
}

fn as_verdict(json: &Json) -> Option<Verdict> {
    let (kind, details) = json.as_object()?.iter().next()?;
    let target = || ChainName::new(details.get("target")?.as_str()?).ok();
    match kind.as_str() {
        "accept" => Some(Verdict::Accept),
        "drop" => Some(Verdict::Drop),
        "return" => Some(Verdict::Return),
        "jump" => target().map(Verdict::Jump),
        "goto" => target().map(Verdict::Goto),
        _ => None,
    }
}

fn add_chain(all: &mut Installed, object: &Object) {
    let name = text(object, "name");
    let Ok(name) = ChainName::new(name) else {
        all.foreign.insert(odd_name("chain", name));
        return;
    };
    match as_base(object) {
        Some(base) => _ = all.chains.insert(name, InstalledChain { base, rules: Vec::new() }),
        None => _ = all.foreign.insert(Foreign::Chain(name)),
    }
}

/// `None` for a chain that is not of our kind, `Some(None)` for a regular one.
fn as_base(object: &Object) -> Option<Option<Base>> {
    if has_only(object, &["family", "table", "name", "handle"]) {
        return Some(None);
    }
    let known = ["family", "table", "name", "handle", "type", "hook", "prio", "policy"];
    if !has_only(object, &known) || text(object, "policy") != "accept" {
        return None;
    }
    let chain_type = match text(object, "type") {
        "filter" => ChainType::Filter,
        "nat" => ChainType::Nat,
        _ => return None,
    };
    let hook = match text(object, "hook") {
        "prerouting" => Hook::Prerouting,
        "input" => Hook::Input,
        "forward" => Hook::Forward,
        "output" => Hook::Output,
        "postrouting" => Hook::Postrouting,
        _ => return None,
    };
    let priority = object.get("prio")?.as_i64()?.try_into().ok()?;
    Some(Some(Base { chain_type, hook, priority }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one object in the listing becomes.
    fn parsed(object: &str) -> Installed {
        parse(format!(r#"{{"nftables": [{{"metainfo": {{"version": "1.0.6"}}}}, {object}]}}"#).as_bytes()).unwrap()
    }

    #[test]
    fn what_other_releases_say_otherwise_means_the_same() {
        let elements = r#""elem": [{"prefix": {"addr": "10.0.0.0", "len": 8}}]"#;
        let set = |flags: &str| {
            parsed(&format!(
                r#"{{"set": {{"family": "inet", "name": "s", "table": "towpath", "type": "ipv4_addr", {flags}, {elements}}}}}"#
            ))
        };
        assert_eq!(set(r#""flags": ["interval"]"#), set(r#""flags": "interval""#), "one flag as a text");
        assert_eq!(set(r#""flags": ["interval"]"#).sets.len(), 1);
    }

    #[test]
    fn what_we_do_not_make_is_foreign_and_nothing_is_skipped() {
        let set = |rest: &str| format!(r#"{{"set": {{"family": "inet", "name": "s", "table": "towpath", {rest}}}}}"#);
        let map = |rest: &str| format!(r#"{{"map": {{"family": "inet", "name": "m", "table": "towpath", {rest}}}}}"#);
        let chain =
            |rest: &str| format!(r#"{{"chain": {{"family": "inet", "table": "towpath", "name": "c", {rest}}}}}"#);
        let (s, m) = (SetName::new("s").unwrap(), SetName::new("m").unwrap());
        let c = Foreign::Chain(ChainName::new("c").unwrap());
        let (s, m, other) = (Foreign::Set(s), Foreign::Map(m), |text: &str| Foreign::Other(text.to_owned()));
        for (object, foreign, why) in [
            (set(r#""type": "mark""#), &s, "a type of key"),
            (set(r#""type": "ipv4_addr", "size": 5"#), &s, "a size would refuse elements one day"),
            (set(r#""type": "ipv4_addr", "flags": ["timeout"]"#), &s, "elements that go by themselves"),
            (set(r#""type": "ipv4_addr", "flags": ["interval", "timeout"]"#), &s, "one flag too many"),
            (
                set(r#""type": "ipv4_addr", "elem": [{"elem": {"val": "10.0.0.1", "comment": "x"}}]"#),
                &s,
                "an element with more",
            ),
            (set(r#""type": "ipv4_addr", "elem": ["::1"]"#), &s, "an element of another family"),
            (set(r#""type": "inet_service", "elem": [70000]"#), &s, "no port"),
            (set(r#""type": ["ipv4_addr", "inet_service"], "elem": ["10.0.0.1"]"#), &s, "half a key"),
            (map(r#""type": "ipv4_addr", "map": "mark""#), &m, "a map of values"),
            (map(r#""type": "ipv4_addr", "map": "verdict", "elem": [["10.0.0.1", {"queue": null}]]"#), &m, "a verdict"),
            (chain(r#""type": "filter", "hook": "input", "prio": 0, "policy": "drop""#), &c, "a policy"),
            (chain(r#""type": "route", "hook": "output", "prio": 0, "policy": "accept""#), &c, "a type of chain"),
            (
                chain(r#""type": "filter", "hook": "ingress", "dev": "eth0", "prio": 0, "policy": "accept""#),
                &c,
                "a device",
            ),
            (chain(r#""comment": "mine""#), &c, "a comment"),
            (
                r#"{"table": {"family": "inet", "name": "towpath", "flags": "dormant"}}"#.to_owned(),
                &other("flags or a comment of the table"),
                "asleep",
            ),
            (r#"{"flowtable": {"family": "inet", "name": "f"}}"#.to_owned(), &other("flowtable f"), "another kind"),
            (r#"{"chain": {"name": "a/b"}}"#.to_owned(), &other("chain \"a/b\""), "a name that we cannot have"),
        ] {
            let have = parsed(&object);
            assert_eq!(have.foreign.into_iter().collect::<Vec<_>>(), std::slice::from_ref(foreign), "{why}");
            assert!(have.sets.is_empty() && have.maps.is_empty() && have.chains.is_empty(), "{why}");
        }
    }

    #[test]
    fn a_rule_without_our_comment_is_there_but_is_not_ours() {
        let chain = r#"{"chain": {"family": "inet", "table": "towpath", "name": "c", "handle": 1}}"#;
        let rule = |rest: &str| {
            format!(r#"{{"rule": {{"family": "inet", "chain": "c", "expr": [{{"accept": null}}]{rest}}}}}"#)
        };
        let comments = ["", r#", "comment": "towpath:0123456789ab""#, r#", "comment": "towpath:0123""#];
        let rules: Vec<_> = comments.iter().map(|comment| rule(comment)).collect();
        let have = parsed(&format!("{chain}, {}", rules.join(", ")));
        let have = &have.chains[&ChainName::new("c").unwrap()];
        assert_eq!(have.rules, [None, "towpath:0123456789ab".parse().ok(), None]);
    }

    #[test]
    fn a_listing_that_is_cut_off_is_an_error() {
        assert!(parse(br#"{"nftables": [{"chain": {"name": "c""#).is_err());
        assert!(parse(b"").is_err());
    }
}
