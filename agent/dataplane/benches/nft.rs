//! The time of changes of the table over netlink, compared with an `nft` process. The table has 1,000 sets of 100
//! addresses, one set of 10,000 pods, and 250 chains. `cargo bench -p towpath-dataplane` prints median and maximum; it
//! has no pass or fail. It runs in its own network namespace and needs root.

#![allow(clippy::unwrap_used, reason = "a failed step ends the bench")]

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

/// A way to change the table.
trait Backend {
    const NAME: &str;
    fn apply(&mut self, transaction: &Transaction);
    fn read(&mut self);
}

struct Netlink(KernelNft);

impl Backend for Netlink {
    const NAME: &str = "netlink";

    fn apply(&mut self, transaction: &Transaction) {
        self.0.apply(transaction).unwrap();
    }

    fn read(&mut self) {
        self.0.read_back().unwrap().unwrap();
    }
}

/// An `nft` process that reads a temporary script.
struct Process;

impl Backend for Process {
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
    println!("{:<34} {:<12} {:>10} {:>10}", "change", "by", "median ms", "max ms");
    measure(&mut Netlink(KernelNft::open_as(Ownership::Shared).unwrap()));
    measure(&mut Process);
}

fn measure<B: Backend>(backend: &mut B) {
    let want = ruleset();
    time::<B>("the whole table, created", BIG_RUNS, || {
        backend.apply(&Transaction::delete());
        let start = Instant::now();
        backend.apply(&Transaction::create(&want));
        start.elapsed()
    });
    time::<B>("the whole table, replaced", BIG_RUNS, || timed(|| backend.apply(&Transaction::replace(&want))));
    time::<B>("the whole table, read back", BIG_RUNS, || timed(|| backend.read()));
    let one = |n: usize| OrdSet::unit(address(u32::try_from(n).unwrap() + 0x0b00_0000));
    let mut n = 0;
    time::<B>("one element added to 10,000", RUNS, || {
        n += 1;
        timed(|| backend.apply(&[Step::AddElements(pods(), one(n))].into_iter().collect()))
    });
    time::<B>("one element deleted", RUNS, || {
        n -= 1;
        timed(|| backend.apply(&[Step::DeleteElements(pods(), one(n + 1))].into_iter().collect()))
    });
    let chain = chain(7);
    time::<B>("one chain of five rules, rewritten", RUNS, || {
        let add = rules(7).into_iter().map(|rule| Step::AddRule(chain.clone(), rule));
        let steps = std::iter::once(Step::FlushChain(chain.clone())).chain(add).collect();
        timed(|| backend.apply(&steps))
    });
    backend.apply(&Transaction::delete());
}

fn timed(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

fn time<B: Backend>(what: &str, runs: usize, mut act: impl FnMut() -> Duration) {
    let mut times: Vec<_> = (0..runs).map(|_| act()).collect();
    times.sort();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    println!("{what:<34} {:<12} {:>10.3} {:>10.3}", B::NAME, millis(times[runs / 2]), millis(times[runs - 1]));
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
