//! What changes of our table cost over netlink, and beside it through a process of the `nft` program, which is the other
//! way to do it: a table of 1,000 sets of 100 addresses and 250 chains, one set of 10,000 pods among them.
//! `cargo bench -p towpath-dataplane` prints medians and the slowest; nothing here passes or fails. In a network
//! namespace of its own, so it needs root.

#![allow(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use imbl::OrdSet;
use nix::sched::{CloneFlags, unshare};
use towpath_core::{
    model::Family,
    names::{ChainName, SetName},
    ruleset::{
        Chain, CmpOp, Element, Field, KeyType, Lookup, Match, Rule, Ruleset, Set, Step, Transaction, Value, Verdict,
    },
};
use towpath_dataplane::nft::{KernelNft, Nft, Ownership};

const SETS: u32 = 1_000;
const ELEMENTS: u32 = 100;
const CHAINS: u32 = 250;
const PODS: u32 = 10_000;
const RUNS: usize = 100;
const BIG_RUNS: usize = 5;

/// One way to change the table.
trait Arm {
    const NAME: &str;
    fn apply(&mut self, transaction: &Transaction);
    fn read(&mut self);
}

struct Netlink(KernelNft);

impl Arm for Netlink {
    const NAME: &str = "netlink";

    fn apply(&mut self, transaction: &Transaction) {
        self.0.apply(transaction).unwrap();
    }

    fn read(&mut self) {
        self.0.read_back().unwrap().unwrap();
    }
}

/// A script in memory, as far as the file system goes, and a process that reads it.
struct Process;

impl Arm for Process {
    const NAME: &str = "nft process";

    fn apply(&mut self, transaction: &Transaction) {
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), transaction.to_string()).unwrap();
        assert!(Command::new("nft").arg("--file").arg(script.path()).status().unwrap().success());
    }

    fn read(&mut self) {
        let list = ["--numeric", "--json", "list", "table", "inet", "towpath"];
        assert!(Command::new("nft").args(list).stdout(Stdio::null()).status().unwrap().success());
    }
}

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root, or `unshare -Urn`");
    println!("{:<34} {:<12} {:>10} {:>10}", "what", "by", "median ms", "most ms");
    measure(&mut Netlink(KernelNft::open_as(Ownership::Shared).unwrap()));
    measure(&mut Process);
}

fn measure<A: Arm>(arm: &mut A) {
    let want = ruleset();
    time::<A>("nothing to the whole table", BIG_RUNS, || {
        arm.apply(&Transaction::delete());
        let start = Instant::now();
        arm.apply(&Transaction::create(&want));
        start.elapsed()
    });
    time::<A>("the whole table, replaced", BIG_RUNS, || timed(|| arm.apply(&Transaction::replace(&want))));
    time::<A>("the whole table, read back", BIG_RUNS, || timed(|| arm.read()));
    let one = |n: usize| OrdSet::unit(address(u32::try_from(n).unwrap() + 0x0b00_0000));
    let mut n = 0;
    time::<A>("one element more among 10,000", RUNS, || {
        n += 1;
        timed(|| arm.apply(&[Step::AddElements(pods(), one(n))].into_iter().collect()))
    });
    time::<A>("one element less", RUNS, || {
        n -= 1;
        timed(|| arm.apply(&[Step::DeleteElements(pods(), one(n + 1))].into_iter().collect()))
    });
    let chain = chain(7);
    time::<A>("one chain of five rules, rewritten", RUNS, || {
        let add = rules(7).into_iter().map(|rule| Step::AddRule(chain.clone(), rule));
        let steps = std::iter::once(Step::FlushChain(chain.clone())).chain(add).collect();
        timed(|| arm.apply(&steps))
    });
    arm.apply(&Transaction::delete());
}

fn timed(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

fn time<A: Arm>(what: &str, runs: usize, mut act: impl FnMut() -> Duration) {
    let mut times: Vec<_> = (0..runs).map(|_| act()).collect();
    times.sort();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    println!("{what:<34} {:<12} {:>10.3} {:>10.3}", A::NAME, millis(times[runs / 2]), millis(times[runs - 1]));
}

fn ruleset() -> Ruleset {
    let mut all = Ruleset::default();
    for n in 0..SETS {
        all.sets.insert(set(n), addresses(0x0a00_0000 + n * ELEMENTS, ELEMENTS));
    }
    all.sets.insert(pods(), addresses(0x0ac0_0000, PODS));
    for n in 0..CHAINS {
        all.chains.insert(chain(n), Arc::new(Chain { base: None, rules: rules(n) }));
    }
    all
}

fn addresses(first: u32, count: u32) -> Set {
    let elements = (first..first + count).map(address).collect();
    Set { key: vec![KeyType::Ipv4], lookup: Lookup::Hash, elements }
}

fn address(n: u32) -> Element {
    vec![Value::Addr(IpAddr::V4(Ipv4Addr::from_bits(n)))]
}

fn rules(n: u32) -> Vec<Rule> {
    let from = |set| Match::InSet(vec![Field::Source(Family::V4)], CmpOp::Eq, set);
    let sets = (0..4).map(|k| set((n * 4 + k) % SETS));
    let mut rules: Vec<_> = sets.map(|set| Rule::verdict(vec![from(set)], Verdict::Accept)).collect();
    rules.push(Rule::verdict(Vec::new(), Verdict::Drop));
    rules
}

fn pods() -> SetName {
    SetName::new("pods").expect("a name")
}

fn set(n: u32) -> SetName {
    SetName::new(&format!("peers.{n}")).expect("a name")
}

fn chain(n: u32) -> ChainName {
    ChainName::new(&format!("in.{n}")).expect("a name")
}
