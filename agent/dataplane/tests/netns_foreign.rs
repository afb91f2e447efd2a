//! Foreign firewalls, created with `nft` and `iptables-nft`: reading them, and the findings.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    time::{Duration, Instant},
};

use support::Namespace;
use towpath_core::{
    foreign_firewall::{Certainty, ForeignTable, ForwardDrop, PodTraffic, findings},
    model::Family,
    names::IfName,
};
use towpath_dataplane::{
    foreign::{self, ForeignFirewalls, MAX_CHAINS},
    nft::{ForeignChange, ForeignListener},
};

const LIMIT: Duration = Duration::from_secs(60);

fn traffic() -> PodTraffic {
    PodTraffic {
        own: BTreeMap::from([(Family::V4, "10.244.1.0/24".parse().unwrap())]),
        cluster: BTreeSet::from(["10.244.0.0/16".parse().unwrap()]),
        overlay: BTreeMap::from([(Family::V4, IfName::new("flannel.1").unwrap())]),
    }
}

/// Reads the foreign firewalls of a new namespace after a script.
fn read_after(script: &str) -> ForeignFirewalls {
    let namespace = Namespace::new();
    namespace.sh(script);
    read(&namespace)
}

fn read(namespace: &Namespace) -> ForeignFirewalls {
    namespace.run(|| foreign::read(LIMIT)).unwrap()
}

fn found(read: &ForeignFirewalls) -> Vec<ForwardDrop> {
    findings(&read.tables, &traffic())
}

/// Reads a table with one chain at the forward hook, and other objects.
fn read_table(others: &str, policy: &str, rules: &str) -> ForeignFirewalls {
    let hook = format!("type filter hook forward priority 10; policy {policy};");
    let table = format!(
        "table inet other {{\n {others}\n chain called {{\n accept\n }}\n chain forward {{\n {hook}\n {rules}\n }}\n}}\n"
    );
    let mut script = tempfile::NamedTempFile::new().unwrap();
    script.write_all(table.as_bytes()).unwrap();
    read_after(&format!("nft -f {}", script.path().display()))
}

/// The rules of dockerd 24 without containers.
const DOCKER: &str = "
iptables-nft -P FORWARD DROP
iptables-nft -N DOCKER; iptables-nft -N DOCKER-USER
iptables-nft -N DOCKER-ISOLATION-STAGE-1; iptables-nft -N DOCKER-ISOLATION-STAGE-2
iptables-nft -A FORWARD -j DOCKER-USER
iptables-nft -A FORWARD -j DOCKER-ISOLATION-STAGE-1
iptables-nft -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A FORWARD -o docker0 -j DOCKER
iptables-nft -A FORWARD -i docker0 ! -o docker0 -j ACCEPT
iptables-nft -A FORWARD -i docker0 -o docker0 -j ACCEPT
iptables-nft -A DOCKER-USER -j RETURN
iptables-nft -A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
iptables-nft -A DOCKER-ISOLATION-STAGE-1 -j RETURN
iptables-nft -A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
iptables-nft -A DOCKER-ISOLATION-STAGE-2 -j RETURN
";

/// Rules like those of ufw: policy drop, and chains that accept established connections.
const UFW: &str = "
iptables-nft -P FORWARD DROP
iptables-nft -N ufw-before-forward; iptables-nft -N ufw-user-forward; iptables-nft -N ufw-reject-forward
iptables-nft -A FORWARD -j ufw-before-forward
iptables-nft -A FORWARD -j ufw-reject-forward
iptables-nft -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT
iptables-nft -A ufw-before-forward -j ufw-user-forward
";

/// Rules like those of firewalld: policy accept, and a final reject.
const FIREWALLD: &str = "nft -f - <<'END'
table inet firewalld {
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    ct status dnat accept
    iifname \"lo\" accept
    ct state invalid drop
    ip6 daddr { ::/96, 2002::/24 } reject with icmpv6 addr-unreachable
    jump filter_FORWARD_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_FORWARD_ZONES {
    iifname vmap { \"eth0\" : goto filter_FWD_public, \"eth1\" : goto filter_FWD_public }
    goto filter_FWD_public
  }
  chain filter_FWD_public {
    meta l4proto { icmp, ipv6-icmp } accept
    oifname \"eth0\" accept
  }
}
END";

#[test]
fn drops_of_docker_ufw_and_firewalld_are_found_until_the_remedy_is_applied() {
    let remedied = |script: &str, remedy: &str| format!("{script}\n{remedy}");
    for (script, name, remedy) in [
        (DOCKER, "ip filter FORWARD", "iptables-nft -I DOCKER-USER -s 10.244.0.0/16 -d 10.244.0.0/16 -j ACCEPT"),
        (UFW, "ip filter FORWARD", "iptables-nft -A ufw-user-forward -s 10.244.0.0/16 -d 10.244.0.0/16 -j ACCEPT"),
        (
            FIREWALLD,
            "inet firewalld filter_FORWARD",
            "nft insert rule inet firewalld filter_FORWARD_ZONES ip saddr 10.244.0.0/16 accept",
        ),
        ("iptables-nft -P FORWARD DROP", "ip filter FORWARD", "iptables-nft -P FORWARD ACCEPT"),
    ] {
        let read = read_after(script);
        assert_eq!(read.skipped, 0, "{script}");
        let found = found(&read);
        assert_eq!(found.iter().map(ForwardDrop::place).collect::<Vec<_>>(), [name], "{script}");
        assert_eq!(found[0].certainty, Certainty::Certain, "{script}");
        assert_eq!(self::found(&read_after(&remedied(script, remedy))), [], "{remedy}");
    }
}

#[test]
fn each_rule_has_the_expected_certainty() {
    use Certainty::{Certain, Possible};
    for (rule, expected) in [
        ("accept", None),
        ("counter log prefix \"x\" accept", None),
        ("meta nfproto ipv4 accept", None),
        ("ct state new,established accept", None),
        ("ct state != established accept", None),
        ("ct state vmap { established : accept, new : accept }", None),
        ("ct direction original accept", None),
        ("iifname \"tow*\" accept\n oifname { \"tow*\", \"eth0\" } accept", None),
        ("iifname vmap { \"tow*\" : accept, \"flannel.1\" : jump called }", None),
        ("ip saddr { 10.244.0.0/16, 10.96.0.0/12 } ip daddr 10.0.0.0/8 accept", None),
        ("ip saddr != 172.16.0.0/12 accept", None),
        ("jump called", None),
        ("limit rate 1/second log", Some(Certain)),
        ("meta l4proto tcp accept", Some(Certain)),
        ("tcp dport { 80, 443 } accept", Some(Certain)),
        ("icmp type echo-request accept", Some(Certain)),
        ("ct state { established, related } accept", Some(Certain)),
        ("ct status dnat accept", Some(Certain)),
        ("ct state vmap { established : accept, invalid : drop }", Some(Certain)),
        ("iif lo accept", Some(Certain)),
        ("iifname \"docker0\" meta mark 5 accept", Some(Certain)),
        ("ip saddr 172.17.0.0/16 accept", Some(Certain)),
        ("ip6 saddr != fe80::/10 accept", Some(Certain)),
        ("meta mark 5 accept", Some(Possible)),
        ("ip saddr 10.244.0.1-10.244.0.9 accept", Some(Possible)),
        ("iifname . ip saddr { \"eth0\" . 1.2.3.4 } accept", Some(Possible)),
        ("fib daddr type local jump called", Some(Possible)),
        ("limit rate 1000/second accept", Some(Possible)),
    ] {
        let read = read_table("", "drop", rule);
        assert_eq!(found(&read).first().map(|drop| drop.certainty), expected, "{rule}: {:#?}", read.tables);
    }
}

#[test]
fn statements_unknown_to_the_schema_are_counted_and_the_rest_is_read() {
    // The crate supports neither the statement `last` nor the `meta` key `time`. A rule may have no other statement.
    for (rule, expected) in [
        ("meta hour \"10:00\"-\"11:00\" accept\n accept", None),
        ("meta hour \"10:00\"-\"11:00\" accept", Some(Certainty::Possible)),
        ("iifname \"docker0\" meta hour \"10:00\"-\"11:00\" accept", Some(Certainty::Certain)),
    ] {
        let read = read_table("", "drop", rule);
        assert_eq!(read.skipped, 1, "{rule}");
        assert_eq!(found(&read).first().map(|drop| drop.certainty), expected, "{rule}");
    }
}

#[test]
fn only_tables_at_the_forward_hook_of_routed_packets_are_read() {
    let read = read_after(
        "nft add table inet towpath; nft add chain inet towpath forward '{ type filter hook forward priority 0; policy drop; }'
         nft add table bridge b; nft add chain bridge b forward '{ type filter hook forward priority 0; policy drop; }'
         nft add table ip kube-proxy; nft add chain ip kube-proxy filter-forward '{ type filter hook forward priority -110; policy accept; }'
         iptables-nft -P INPUT DROP",
    );
    assert_eq!(read.tables, []);
}

#[test]
fn only_the_chain_policy_of_a_large_table_is_evaluated() {
    let chains: String = (0..MAX_CHAINS).map(|n| format!("chain c{n} {{\n }}\n")).collect();
    let found = found(&read_table(&chains, "drop", "accept"));
    assert_eq!(found.iter().map(|drop| drop.certainty).collect::<Vec<_>>(), [Certainty::Possible]);
}

#[test]
fn elements_of_named_sets_are_not_read() {
    let elements: Vec<String> = (0..40_000_u32).map(|n| format!("172.16.{}.{}", n >> 8, n & 0xff)).collect();
    let set = format!("set large {{\n type ipv4_addr; elements = {{ {} }}\n }}", elements.join(", "));
    let found = found(&read_table(&set, "drop", "ip saddr @large accept"));
    assert_eq!(found.iter().map(|drop| drop.certainty).collect::<Vec<_>>(), [Certainty::Possible]);
}

#[test]
fn a_filter_table_of_iptables_legacy_is_detected_and_not_evaluated() {
    let namespace = Namespace::new();
    assert!(!read(&namespace).has_legacy_filter);
    // Not every kernel supports it.
    if namespace.try_sh("iptables-legacy -P FORWARD DROP").is_ok() {
        let read = read(&namespace);
        assert_eq!((read.has_legacy_filter, found(&read)), (true, Vec::new()));
    }
}

#[test]
fn an_error_of_nft_is_returned() {
    let namespace = Namespace::new();
    let error = namespace.run(|| foreign::read(Duration::ZERO)).unwrap_err();
    assert!(!error.is_missing_program());
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "\"nft -j list chains\" did not end within its time");
}

#[test]
fn changes_that_concern_the_forward_hook_are_notified_and_others_are_not() {
    let namespace = Namespace::new();
    let mut listener = namespace.run(|| ForeignListener::open().unwrap());
    let mut waited = |tables: &[ForeignTable], command: &str, within: Duration| {
        listener.drain().unwrap();
        namespace.sh(command);
        listener.wait(Instant::now() + within, tables).unwrap()
    };
    let (soon, silence) = (Duration::from_secs(20), Duration::from_millis(200));
    for command in [
        "nft add table inet towpath",
        "nft add chain inet towpath forward '{ type filter hook forward priority 0; policy accept; }'",
        "iptables-nft -P INPUT DROP",
        "nft add table ip other; nft add chain ip other c; nft add rule ip other c drop",
    ] {
        assert_eq!(waited(&[], command, silence), ForeignChange::Nothing, "{command}");
    }
    for command in ["iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT", "iptables-nft -P FORWARD DROP"] {
        assert_eq!(waited(&[], command, soon), ForeignChange::Forward, "{command}");
    }
    let tables = read(&namespace).tables;
    assert_eq!(tables.len(), 1);
    for command in ["iptables-nft -A FORWARD -j ACCEPT", "iptables-nft -F FORWARD", "nft delete table ip filter"] {
        assert_eq!(waited(&tables, command, soon), ForeignChange::Forward, "{command}");
    }
}
