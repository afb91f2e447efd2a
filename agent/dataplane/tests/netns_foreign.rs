//! Firewalls of other programs, made by `nft` and `iptables-nft` themselves, and what is read and found of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

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

/// What is read in a new namespace after a script.
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

/// What is read of a table with one chain at the forward hook, and other things beside it.
fn read_table(others: &str, policy: &str, rules: &str) -> ForeignFirewalls {
    let hook = format!("type filter hook forward priority 10; policy {policy};");
    let table = format!(
        "table inet other {{\n {others}\n chain called {{\n accept\n }}\n chain forward {{\n {hook}\n {rules}\n }}\n}}\n"
    );
    let mut script = tempfile::NamedTempFile::new().unwrap();
    script.write_all(table.as_bytes()).unwrap();
    read_after(&format!("nft -f {}", script.path().display()))
}

/// What dockerd writes, version 24, without containers.
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

/// The shape of ufw's tables: policy drop, and chains that accept what belongs to known connections.
const UFW: &str = "
iptables-nft -P FORWARD DROP
iptables-nft -N ufw-before-forward; iptables-nft -N ufw-user-forward; iptables-nft -N ufw-reject-forward
iptables-nft -A FORWARD -j ufw-before-forward
iptables-nft -A FORWARD -j ufw-reject-forward
iptables-nft -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables-nft -A ufw-before-forward -p icmp --icmp-type echo-request -j ACCEPT
iptables-nft -A ufw-before-forward -j ufw-user-forward
";

/// The shape of firewalld's: policy accept, and a reject at the end.
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
fn what_docker_ufw_and_firewalld_drop_is_found_until_the_remedy_is_applied() {
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
fn a_rule_counts_as_what_nft_says_of_it() {
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
fn what_the_schema_does_not_know_is_counted_and_the_rest_is_read() {
    // The crate knows no `last` statement and no `meta` key `time`; a rule may consist of such a thing alone.
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
fn of_a_large_table_only_the_policy_counts() {
    let chains: String = (0..MAX_CHAINS).map(|n| format!("chain c{n} {{\n }}\n")).collect();
    let found = found(&read_table(&chains, "drop", "accept"));
    assert_eq!(found.iter().map(|drop| drop.certainty).collect::<Vec<_>>(), [Certainty::Possible]);
}

#[test]
fn elements_of_named_sets_are_left_out() {
    let elements: Vec<String> = (0..40_000_u32).map(|n| format!("172.16.{}.{}", n >> 8, n & 0xff)).collect();
    let set = format!("set large {{\n type ipv4_addr; elements = {{ {} }}\n }}", elements.join(", "));
    let found = found(&read_table(&set, "drop", "ip saddr @large accept"));
    assert_eq!(found.iter().map(|drop| drop.certainty).collect::<Vec<_>>(), [Certainty::Possible]);
}

#[test]
fn a_filter_table_of_iptables_legacy_is_noticed_and_no_more() {
    let namespace = Namespace::new();
    assert!(!read(&namespace).has_legacy_filter);
    // Not every kernel has it.
    if namespace.try_sh("iptables-legacy -P FORWARD DROP").is_ok() {
        let read = read(&namespace);
        assert_eq!((read.has_legacy_filter, found(&read)), (true, Vec::new()));
    }
}

#[test]
fn an_error_of_nft_is_told() {
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
    let (soon, never) = (Duration::from_secs(20), Duration::from_millis(200));
    for command in [
        "nft add table inet towpath",
        "nft add chain inet towpath forward '{ type filter hook forward priority 0; policy accept; }'",
        "iptables-nft -P INPUT DROP",
        "nft add table ip other; nft add chain ip other c; nft add rule ip other c drop",
    ] {
        assert_eq!(waited(&[], command, never), ForeignChange::Nothing, "{command}");
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
