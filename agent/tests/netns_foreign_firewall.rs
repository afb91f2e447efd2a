//! The thread that reads other programs' tables, in a namespace where `iptables-nft` changes them; and the command that
//! prints our own.

#![allow(clippy::unwrap_used, reason = "a failed step ends the test")]

use std::{
    process::Command,
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use towpath_agent::foreign_firewall::{Pace, spawn};
use towpath_core::foreign_firewall::{ChainPolicy, ForeignTable};

/// More than a reading takes on an overloaded machine.
const SOON: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_millis(500);

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Moves the calling thread into a new network namespace, and starts the thread there.
fn start(resync: Duration) -> Receiver<Vec<ForeignTable>> {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root, or `unshare -Urn`");
    let short = Duration::from_millis(100);
    let (to, read) = channel();
    spawn(Pace { resync, between: short, gather: short, limit: SOON }, move |tables| to.send(tables).is_ok()).unwrap();
    read
}

fn policies(tables: &[ForeignTable]) -> Vec<ChainPolicy> {
    let hooks = tables.iter().flat_map(|table| table.chains.values()).filter_map(|chain| chain.forward);
    hooks.map(|hook| hook.policy).collect()
}

#[test]
fn tables_are_read_at_the_start_and_again_when_the_forward_hook_changes() {
    let read = start(Duration::from_secs(3600));
    assert_eq!(read.recv_timeout(SOON).unwrap(), []);
    sh("nft add table ip other; nft add chain ip other c");
    assert_eq!(read.recv_timeout(NEVER), Err(RecvTimeoutError::Timeout), "nothing at the forward hook");
    sh("iptables-nft -P FORWARD DROP");
    assert_eq!(policies(&read.recv_timeout(SOON).unwrap()), [ChainPolicy::Drop]);
    sh("iptables-nft -P FORWARD ACCEPT");
    assert_eq!(policies(&read.recv_timeout(SOON).unwrap()), [ChainPolicy::Accept]);
    sh("nft delete table ip filter");
    assert_eq!(read.recv_timeout(SOON).unwrap(), []);
}

#[test]
fn tables_are_read_at_each_resync() {
    let read = start(Duration::from_millis(50));
    for _ in 0..3 {
        assert_eq!(read.recv_timeout(SOON).unwrap(), []);
    }
}

#[test]
fn the_command_prints_our_table_as_text_and_as_json_and_needs_nothing_else() {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root, or `unshare -Urn`");
    let agent = env!("CARGO_BIN_EXE_towpath-agent");
    let none = Command::new(agent).arg("ruleset").output().unwrap();
    assert!(String::from_utf8_lossy(&none.stderr).contains("there is no table inet towpath"), "{none:?}");
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/core/tests/golden/plain.nft");
    sh(&format!("nft -f {golden}"));
    assert_eq!(sh(&format!("{agent} ruleset")), std::fs::read_to_string(golden).unwrap());
    let json = sh(&format!("{agent} ruleset -o json"));
    assert_eq!(json, sh(&format!("{agent} ruleset --output json")), "the same bytes");
    assert!(json.contains("\"json_schema_version\": 1"), "{json}");
    sh(&format!("nft delete table inet towpath; {agent} ruleset -o json 2>&1 | grep -q 'no table'"));
}
