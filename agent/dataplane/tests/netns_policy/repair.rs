//! Changes of the table by other processes, and a writer that is killed, under a flood of new connections. Those of
//! `lab` are always denied, those of `remote` always allowed.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use towpath_core::ruleset::{Installed, Ruleset, Step, diff};
use towpath_dataplane::nft::{KernelNft, Nft, NftError, NftEvents, Ownership};
use towpath_podlink::netns::Netns;

use crate::{
    cluster::Cluster,
    flood::{Arrival, Clock, flood},
    support::Namespace,
    testbed::Testbed,
};

const ALLOW_RED_NAMESPACES: &str =
    "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}";

/// The longest wait for a repair.
const TIMEOUT: Duration = Duration::from_secs(10);

fn testbed(ownership: Ownership) -> Testbed {
    let mut testbed = Testbed::owned(ownership);
    testbed.cluster.add_policy("shop", "p", ALLOW_RED_NAMESPACES);
    testbed.apply();
    testbed
}

#[test]
fn no_denied_packet_passes_while_others_try_to_change_an_owned_table() {
    let mut testbed = testbed(Ownership::Exclusive);
    let flood = flood(&mut testbed, &["remote", "lab"], "remote", &Clock::default(), |testbed| {
        for _ in 0..20 {
            testbed.node.sh("nft flush ruleset");
            for edit in [
                "delete table inet towpath",
                "flush table inet towpath",
                "flush chain inet towpath to-pod",
                "delete map inet towpath to-pod",
                "flush map inet towpath to-pod",
                "insert rule inet towpath forward accept",
            ] {
                let error = testbed.node.try_sh(&format!("nft '{edit}'")).unwrap_err();
                assert!(error.contains("Operation not permitted"), "{edit}: {error}");
            }
        }
    });
    flood.assert_all_received("remote");
    assert_eq!(flood.received_from("lab"), 0, "of {} denied packets", flood.sent["lab"]);
    println!("{} denied packets, none passed", flood.sent["lab"]);
}

/// Repairs the table on each notification of a change by another process, until the first notification after `stop`.
fn repair_until_stopped(want: &Ruleset, mut events: NftEvents, stop: &AtomicBool) {
    let mut nft = KernelNft::open_as(Ownership::Shared).unwrap();
    loop {
        let change = events.next_change().unwrap();
        if stop.load(Ordering::SeqCst) {
            return;
        }
        if !nft.is_own(&change) {
            let have = nft.read_back().unwrap();
            nft.apply(&diff(want, have.as_ref())).unwrap();
        }
    }
}

/// Reads the table back once no socket owns it: the kernel releases a closed socket with a delay.
fn read_back(node: &Namespace, ownership: Ownership) -> Option<Installed> {
    node.run(|| {
        let end = Instant::now() + TIMEOUT;
        let mut nft = KernelNft::open_as(ownership).unwrap();
        loop {
            match nft.read_back() {
                Err(NftError::Owned { .. }) if Instant::now() < end => thread::yield_now(),
                have => return have.unwrap(),
            }
        }
    })
}

/// The generation in which change `n`, counted from 1, may not be repaired yet.
fn damaged(n: u64) -> u64 {
    2 * n - 1
}

/// Time from the first to the last denied packet that passed.
fn leak_duration<'a>(arrivals: impl Iterator<Item = &'a Arrival> + Clone) -> Duration {
    let (first, last) = (arrivals.clone().map(|a| a.at).min(), arrivals.map(|a| a.at).max());
    first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first)
}

#[test]
fn a_shared_table_is_repaired_and_denied_packets_do_not_pass_after_the_repair() {
    let mut testbed = testbed(Ownership::Shared);
    let want = testbed.rules.clone();
    let (clock, stop) = (Clock::default(), Arc::new(AtomicBool::new(false)));
    let events = testbed.node.run(|| NftEvents::open().unwrap());
    let namespace = Netns::open(&testbed.node.path()).unwrap();
    let repairer = thread::spawn({
        let (want, stop) = (want.clone(), Arc::clone(&stop));
        move || namespace.run(|| repair_until_stopped(&want, events, &stop)).unwrap()
    });
    let edits = [
        "flush ruleset",
        "delete table inet towpath",
        "flush chain inet towpath to-pod",
        "flush map inet towpath to-pod",
        "insert rule inet towpath to-pod accept",
    ];
    let changes: Vec<&str> = edits.into_iter().cycle().take(30).collect();
    let flood = flood(&mut testbed, &["remote", "lab"], "remote", &clock, |testbed| {
        for (edit, n) in changes.iter().zip(1..) {
            clock.start(damaged(n));
            testbed.node.sh(&format!("nft '{edit}'"));
            let end = Instant::now() + TIMEOUT;
            while read_back(&testbed.node, Ownership::Shared) != Some(want.installed()) {
                assert!(Instant::now() < end, "{edit}: not repaired");
            }
            clock.start(damaged(n) + 1);
            clock.commit(damaged(n) + 1);
        }
    });
    stop.store(true, Ordering::SeqCst);
    testbed.node.sh("nft add chain inet towpath last");
    repairer.join().unwrap();
    let denied = flood.arrivals.iter().filter(|arrival| arrival.from == "lab");
    let during = |arrival: &Arrival, n| (arrival.sent_in..=arrival.received_in).contains(&damaged(n));
    let all = 1..=changes.len() as u64;
    let leaked: Vec<_> = denied.clone().filter(|arrival| !all.clone().any(|n| during(arrival, n))).collect();
    assert!(leaked.is_empty(), "denied packets passed an intact table: {leaked:?}");
    let mut leaks: Vec<Duration> = all.map(|n| leak_duration(denied.clone().filter(|a| during(a, n)))).collect();
    leaks.sort();
    println!("{} changes: {} of {} denied packets passed", leaks.len(), denied.count(), flood.sent["lab"]);
    println!(
        "from the first to the last of them: median {:?}, most {:?}",
        leaks[leaks.len() / 2],
        leaks[leaks.len() - 1]
    );
}

const LISTING: &str = "nft --handle list table inet towpath";

/// Lists the table with its handles, once no socket owns it.
fn list_unowned(node: &Namespace) -> String {
    let end = Instant::now() + TIMEOUT;
    loop {
        let listing = node.sh(LISTING);
        if !listing.contains("flags owner") {
            return listing;
        }
        assert!(Instant::now() < end, "the closed socket still owns the table: {listing}");
    }
}

#[test]
fn a_restart_without_a_change_writes_nothing() {
    let mut testbed = testbed(Ownership::Exclusive);
    assert!(testbed.node.sh(LISTING).contains("flags owner"), "the kernel must support table owners");
    testbed.release_table();
    let before = list_unowned(&testbed.node);
    let want = testbed.rules.clone();
    testbed.node.run(|| {
        let mut nft = KernelNft::open().unwrap();
        let transaction = diff(&want, nft.read_back().unwrap().as_ref());
        assert!(transaction.is_empty(), "{transaction}");
        nft.apply(&transaction).unwrap();
    });
    assert_eq!(list_unowned(&testbed.node), before, "every rule and set keeps its handle");
}

/// Two tables that differ in 2,000 elements and some chains, so that a transaction between them takes long.
fn generations() -> [Ruleset; 2] {
    [0, 1].map(|n| {
        let mut cluster = Cluster::new();
        cluster.add_policy("shop", "p", ALLOW_RED_NAMESPACES);
        // Every second address, so that no interval merges.
        let blocks = (0..2000_u32).fold(String::new(), |mut text, i| {
            let i = 4 * i + 2 * n;
            let _ = write!(text, "{{ipBlock: {{cidr: 100.64.{}.{}/32}}}}, ", i / 256, i % 256);
            text
        });
        let spec = format!("{{podSelector: {{}}, ingress: [{{from: [{blocks}], ports: [{{port: {}}}]}}]}}", 80 + n);
        cluster.add_policy("shop", "q", &spec);
        cluster.want()
    })
}

/// Alternates the two generations until it is killed.
#[test]
#[ignore = "another test runs it as a child process and kills it"]
fn a_writer_alternates_generations_until_it_is_killed() {
    let generations = generations();
    let mut nft = KernelNft::open().unwrap();
    let mut have = nft.read_back().unwrap();
    println!("\nready");
    let end = Instant::now() + TIMEOUT;
    for want in generations.iter().cycle() {
        nft.apply(&diff(want, have.as_ref())).unwrap();
        have = Some(want.installed());
        assert!(Instant::now() < end, "not killed within the timeout");
    }
}

/// Starts the writer in a namespace and waits until it is about to write.
fn start_writer(node: &Namespace) -> Child {
    let mut child = node.run(|| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([
            "--exact",
            "repair::a_writer_alternates_generations_until_it_is_killed",
            "--ignored",
            "--nocapture",
        ]);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    });
    let output = BufReader::new(child.stdout.take().unwrap());
    let ready = output.lines().map_while(Result::ok).any(|line| line == "ready");
    assert!(ready, "the writer ended: {:?}", child.wait());
    child
}

/// Whether a generation is in force: the kernel has all of it, and otherwise only chains, sets and maps of the next
/// generation, which nothing references yet.
fn is_applied(generation: &Ruleset, have: &Installed) -> bool {
    diff(generation, Some(have)).steps().iter().all(|step| match step {
        Step::AddTable => true,
        Step::FlushChain(name) | Step::DeleteChain(name) => !generation.chains.contains_key(name),
        Step::DeleteSet(name) | Step::DeleteMap(name) => {
            !generation.sets.contains_key(name) && !generation.maps.contains_key(name)
        }
        _ => false,
    })
}

#[test]
fn a_killed_writer_leaves_exactly_one_generation_in_force() {
    const KILLS: u32 = 50;
    let mut testbed = testbed(Ownership::Exclusive);
    let generations = generations();
    let flood = flood(&mut testbed, &["remote", "lab"], "remote", &Clock::default(), |testbed| {
        testbed.release_table();
        let mut seen = [0; 2];
        for n in 0..KILLS {
            let mut child = start_writer(&testbed.node);
            // During the first writes, at another time for each kill.
            thread::sleep(Duration::from_micros(u64::from(n) * 797));
            child.kill().unwrap();
            child.wait().unwrap();
            let have = read_back(&testbed.node, Ownership::Exclusive).expect("the table outlives its writer");
            let which = generations.iter().position(|generation| is_applied(generation, &have));
            match which {
                Some(which) => seen[which] += 1,
                // Killed before its first commit.
                None => assert!(
                    seen == [0; 2] && is_applied(&testbed.rules, &have),
                    "kill {n} left a partial table: {have:#?}"
                ),
            }
        }
        seen
    });
    flood.assert_all_received("remote");
    assert_eq!(flood.received_from("lab"), 0, "of {} denied packets", flood.sent["lab"]);
    assert!(flood.result.iter().all(|times| *times > 0), "each generation was left at least once: {:?}", flood.result);
    println!("{KILLS} kills left {:?}; {} denied packets, none passed", flood.result, flood.sent["lab"]);
}
