//! What others do to the table, and what is left of it when its writer is killed: under a flood of new connections of
//! which `lab`'s are denied and `far`'s are allowed, all the time.

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
    world::World,
};

const FROM_FAR: &str = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: red}}}]}]}";

/// The longest that a repair is waited for.
const BOUND: Duration = Duration::from_secs(10);

fn world(ownership: Ownership) -> World {
    let mut world = World::owned(ownership);
    world.cluster.add_policy("shop", "p", FROM_FAR);
    world.apply();
    world
}

#[test]
fn no_denied_packet_passes_whatever_others_do_to_a_table_with_an_owner() {
    let mut world = world(Ownership::Exclusive);
    let flood = flood(&mut world, &["far", "lab"], "far", &Clock::default(), |world| {
        for _ in 0..20 {
            world.node.sh("nft flush ruleset");
            for edit in [
                "delete table inet towpath",
                "flush table inet towpath",
                "flush chain inet towpath to-pod",
                "delete map inet towpath to-pod",
                "flush map inet towpath to-pod",
                "insert rule inet towpath forward accept",
            ] {
                let error = world.node.try_sh(&format!("nft '{edit}'")).unwrap_err();
                assert!(error.contains("Operation not permitted"), "{edit}: {error}");
            }
        }
    });
    flood.has_all_of("far");
    assert_eq!(flood.arrived("lab"), 0, "of {} denied packets", flood.sent["lab"]);
    println!("{} denied packets, none passed", flood.sent["lab"]);
}

/// Mends the table as soon as the kernel tells that somebody has changed it, until it is told to stop, and hears once
/// more.
fn keep_mended(want: &Ruleset, mut events: NftEvents, stop: &AtomicBool) {
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

/// What the kernel has, as soon as nobody owns it: a socket that was closed goes away a moment later.
fn read_back(node: &Namespace, ownership: Ownership) -> Option<Installed> {
    node.run(|| {
        let end = Instant::now() + BOUND;
        let mut nft = KernelNft::open_as(ownership).unwrap();
        loop {
            match nft.read_back() {
                Err(NftError::Owned { .. }) if Instant::now() < end => thread::yield_now(),
                have => return have.unwrap(),
            }
        }
    })
}

/// While damage `n`, from 1 on, is not known to be mended.
fn damaged(n: u64) -> u64 {
    2 * n - 1
}

/// For how long denied packets came, from the first to the last.
fn open_for<'a>(arrivals: impl Iterator<Item = &'a Arrival> + Clone) -> Duration {
    let (first, last) = (arrivals.clone().map(|a| a.at).min(), arrivals.map(|a| a.at).max());
    first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first)
}

#[test]
fn a_table_that_everybody_may_change_is_mended_and_lets_nothing_denied_through_afterwards() {
    let mut world = world(Ownership::Shared);
    let want = world.rules.clone();
    let (clock, stop) = (Clock::default(), Arc::new(AtomicBool::new(false)));
    let events = world.node.run(|| NftEvents::open().unwrap());
    let home = Netns::open(&world.node.path()).unwrap();
    let mender = thread::spawn({
        let (want, stop) = (want.clone(), Arc::clone(&stop));
        move || home.run(|| keep_mended(&want, events, &stop)).unwrap()
    });
    let edits = [
        "flush ruleset",
        "delete table inet towpath",
        "flush chain inet towpath to-pod",
        "flush map inet towpath to-pod",
        "insert rule inet towpath to-pod accept",
    ];
    let damages: Vec<&str> = edits.into_iter().cycle().take(30).collect();
    let flood = flood(&mut world, &["far", "lab"], "far", &clock, |world| {
        for (edit, n) in damages.iter().zip(1..) {
            clock.begins(damaged(n));
            world.node.sh(&format!("nft '{edit}'"));
            let end = Instant::now() + BOUND;
            while read_back(&world.node, Ownership::Shared) != Some(want.installed()) {
                assert!(Instant::now() < end, "{edit}: not mended");
            }
            clock.begins(damaged(n) + 1);
            clock.has_committed(damaged(n) + 1);
        }
    });
    stop.store(true, Ordering::SeqCst);
    world.node.sh("nft add chain inet towpath last");
    mender.join().unwrap();
    let denied = flood.arrivals.iter().filter(|arrival| arrival.from == "lab");
    let during = |arrival: &Arrival, n| (arrival.sent..=arrival.came).contains(&damaged(n));
    let all = 1..=damages.len() as u64;
    let whole: Vec<_> = denied.clone().filter(|arrival| !all.clone().any(|n| during(arrival, n))).collect();
    assert!(whole.is_empty(), "denied packets passed a table that was whole: {whole:?}");
    let mut open: Vec<Duration> = all.map(|n| open_for(denied.clone().filter(|a| during(a, n)))).collect();
    open.sort();
    println!("{} damages: {} of {} denied packets passed", open.len(), denied.count(), flood.sent["lab"]);
    println!("from the first to the last of them: median {:?}, most {:?}", open[open.len() / 2], open[open.len() - 1]);
}

const LISTING: &str = "nft --handle list table inet towpath";

/// The table with every handle, as soon as nobody owns it.
fn list_unowned(node: &Namespace) -> String {
    let end = Instant::now() + BOUND;
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
    let mut world = world(Ownership::Exclusive);
    assert!(world.node.sh(LISTING).contains("flags owner"), "or the end of it would not be seen");
    world.end();
    let before = list_unowned(&world.node);
    let want = world.rules.clone();
    world.node.run(|| {
        let mut nft = KernelNft::open().unwrap();
        let transaction = diff(&want, nft.read_back().unwrap().as_ref());
        assert!(transaction.is_empty(), "{transaction}");
        nft.apply(&transaction).unwrap();
    });
    // What the kernel says of the owner is not ours to write.
    assert_eq!(list_unowned(&world.node), before, "every rule and set has the handle that it had");
}

/// Two tables that differ in two thousand elements and in some chains, so that the way between them takes its time.
fn generations() -> [Ruleset; 2] {
    [0, 1].map(|n| {
        let mut cluster = Cluster::new();
        cluster.add_policy("shop", "p", FROM_FAR);
        // Every second address, so that nothing merges.
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

/// Goes from one generation to the other and back until it is killed.
#[test]
#[ignore = "run by another test as a process of its own, to be killed"]
fn the_writer_that_is_killed() {
    let generations = generations();
    let mut nft = KernelNft::open().unwrap();
    let mut have = nft.read_back().unwrap();
    println!("\nready");
    let end = Instant::now() + BOUND;
    for want in generations.iter().cycle() {
        nft.apply(&diff(want, have.as_ref())).unwrap();
        have = Some(want.installed());
        assert!(Instant::now() < end, "nobody has killed us");
    }
}

/// Starts it in a namespace, and gives it back when it is about to write.
fn start_writer(node: &Namespace) -> Child {
    let mut child = node.run(|| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "heal::the_writer_that_is_killed", "--ignored", "--nocapture"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    });
    let output = BufReader::new(child.stdout.take().unwrap());
    let ready = output.lines().map_while(Result::ok).any(|line| line == "ready");
    assert!(ready, "the writer ended: {:?}", child.wait());
    child
}

/// Whether the kernel has all of a generation and nothing more but what nothing in it leads to: of the next one's parts
/// those that were made before.
fn is_in_force(generation: &Ruleset, have: &Installed) -> bool {
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
fn a_writer_that_is_killed_leaves_one_generation_and_never_a_half() {
    const KILLS: u32 = 50;
    let mut world = world(Ownership::Exclusive);
    let generations = generations();
    let flood = flood(&mut world, &["far", "lab"], "far", &Clock::default(), |world| {
        world.end();
        let mut seen = [0; 2];
        for n in 0..KILLS {
            let mut child = start_writer(&world.node);
            // Somewhere in the first writes, another place each time.
            thread::sleep(Duration::from_micros(u64::from(n) * 797));
            child.kill().unwrap();
            child.wait().unwrap();
            let have = read_back(&world.node, Ownership::Exclusive).expect("the table outlives its writer");
            let which = generations.iter().position(|generation| is_in_force(generation, &have));
            match which {
                Some(which) => seen[which] += 1,
                // Killed before it wrote anything at all.
                None => assert!(seen == [0; 2] && is_in_force(&world.rules, &have), "kill {n} left a half: {have:#?}"),
            }
        }
        seen
    });
    flood.has_all_of("far");
    assert_eq!(flood.arrived("lab"), 0, "of {} denied packets", flood.sent["lab"]);
    assert!(flood.result.iter().all(|times| *times > 0), "{:?}: killed in both directions", flood.result);
    println!("{KILLS} kills left {:?}; {} denied packets, none passed", flood.result, flood.sent["lab"]);
}
