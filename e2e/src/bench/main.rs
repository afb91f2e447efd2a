//! `towpath-bench`: measures Towpath beside hand-made and reference arms, and writes a report. It judges nothing: what a
//! figure should reach stands beside it.
//!
//! Everything runs in clusters and namespaces of its own, which are gone at the end, also when a measurement fails.

mod churn;
mod cni;
mod connections;
mod crowd;
mod cut;
mod flips;
mod ground;
mod heal;
mod idle;
mod memory;
mod metrics;
mod peers;
mod plugin;
mod pods;
mod process;
mod ready;
mod report;
mod sample;
mod spot;
mod stream;
mod tcp;

use std::fs;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use towpath_e2e::progress::Progress;
use towpath_e2e::site::Site;
use towpath_e2e::{cluster, demo, run};

use crate::crowd::{Crowd, PODS, POLICIES};
use crate::ground::{Ground, Standing};
use crate::report::Table;

/// Measures Towpath on this machine.
#[derive(Parser)]
#[command(name = "towpath-bench", version)]
struct Cli {
    /// Measure only this; may be given several times
    #[arg(long, value_enum)]
    only: Vec<Section>,
}

/// What is measured, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    /// From kubectl apply of a NetworkConfig to Ready
    Ready,
    /// Memory, CPU and wake-ups while nothing happens
    Idle,
    /// TCP and ping across nodes
    Tcp,
    /// CNI ADD and DEL
    Cni,
    /// From the creation of pods to Running
    Pods,
    /// From the write of a policy to its effect
    Flips,
    /// From the write of a policy to the end of a connection that it denies
    Cut,
    /// Memory of an agent that knows a large cluster
    Memory,
    /// A hundred changes a second
    Churn,
    /// New connections per second to a pod with many policies
    Connections,
    /// Meddling with the rules under a flood of forbidden packets
    Heal,
    /// A thousand peers
    Peers,
    /// The whole demonstration
    Demo,
}

const CLUSTER: &str = "bench";
const REFERENCE: &str = "bench-reference";
const CROWD: &str = "bench-crowd";
const PEERS: &str = "bench-peers";
const NODES: u8 = 3;

/// The report as it grows: each section is written when it is there.
struct Bench {
    only: Vec<Section>,
    ground: Ground,
    report: String,
    failed: bool,
}

fn main() -> ExitCode {
    match measure(Cli::parse()) {
        Ok(failed) => ExitCode::from(u8::from(failed)),
        Err(error) => {
            // The chain of causes; no backtrace, whatever the environment says: the steps are in the words.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: Cli) -> Result<bool> {
    let start = Instant::now();
    let program = std::env::current_exe().context("find this program's own file")?;
    let ground = Ground::prepare(Site::new(&program.with_file_name("towpath-cluster"))?, Progress::default())?;
    let mut bench = Bench { only: cli.only, report: heading(&ground)?, ground, failed: false };
    bench.on_three_nodes()?;
    bench.on_a_crowd()?;
    bench.on_one_node()?;
    bench.demonstration()?;
    bench.say(&format!("The whole took {} s; {}.\n", start.elapsed().as_secs(), load()))?;
    bench.ground.progress.say(format!("the report is in {}", bench.file().display()));
    Ok(bench.failed)
}

impl Bench {
    fn wants(&self, section: Section) -> bool {
        self.only.is_empty() || self.only.contains(&section)
    }

    fn on_three_nodes(&mut self) -> Result<()> {
        use Section::{Cni, Idle, Pods, Ready, Tcp};
        if ![Cni, Idle, Pods, Ready, Tcp].into_iter().any(|section| self.wants(section)) {
            return Ok(());
        }
        let cluster = self.ground.cluster(CLUSTER, NODES)?;
        if self.wants(Ready) {
            let installed = self.ground.install(&cluster)?;
            self.section(Ready, |ground| ready::measure(ground, &cluster, installed))?;
        }
        // After the section above nothing is left to do here.
        self.ground.deploy(&cluster)?;
        self.section(Idle, |_| idle::measure(&cluster, "three nodes", "< 25"))?;
        self.section(Tcp, |_| tcp::measure(&cluster))?;
        self.section(Cni, |_| cni::measure(&cluster))?;
        if self.wants(Pods) {
            let reference = self.ground.cluster(REFERENCE, NODES)?;
            reference.reference_network()?;
            self.section(Pods, |_| pods::measure(&cluster, &reference))?;
        }
        Ok(())
    }

    /// On a cluster whose agents know many pods and policies. What is heavier comes later.
    fn on_a_crowd(&mut self) -> Result<()> {
        use Section::{Churn, Connections, Cut, Flips, Heal, Idle, Memory};
        if ![Churn, Connections, Cut, Flips, Heal, Idle, Memory].into_iter().any(|section| self.wants(section)) {
            return Ok(());
        }
        let cluster = self.ground.cluster(CROWD, 2)?;
        self.ground.deploy(&cluster)?;
        let mut crowd = Crowd::start(&cluster)?;
        self.section(Flips, |_| flips::measure(&mut crowd))?;
        self.section(Cut, |_| cut::measure(&crowd))?;
        self.section(Memory, |_| memory::measure(&mut crowd))?;
        self.section(Idle, |_| {
            crowd.complete()?;
            idle::measure(&cluster, &format!("two nodes, {PODS} pods and {POLICIES} policies known"), "≤ 60")
        })?;
        self.section(Churn, |_| churn::measure(&mut crowd))?;
        self.section(Connections, |_| connections::measure(&mut crowd))?;
        self.section(Heal, |_| heal::measure(&mut crowd))
    }

    fn on_one_node(&mut self) -> Result<()> {
        if !self.wants(Section::Peers) {
            return Ok(());
        }
        let cluster: Standing = self.ground.cluster(PEERS, 1)?;
        self.ground.deploy(&cluster)?;
        self.section(Section::Peers, |_| peers::measure(&cluster))
    }

    fn demonstration(&mut self) -> Result<()> {
        if !self.wants(Section::Demo) {
            return Ok(());
        }
        if !cluster::leftovers(&self.ground.site, demo::CLUSTER)?.is_empty() {
            return self
                .say("## Demonstration\n\n- Not measured: its cluster is up, and somebody may be looking at it.\n\n");
        }
        self.section(Section::Demo, |ground| {
            let start = Instant::now();
            let shown = demo::run(&ground.site, ground.progress);
            let took = start.elapsed();
            cluster::remove(&ground.site, demo::CLUSTER)?;
            shown?;
            let mut table = Table::new("Demonstration", &["what", "s", "aim s"]);
            table.row(["make demo, everything built".into(), format!("{:.1}", took.as_secs_f64()), "< 90".into()]);
            Ok(table)
        })
    }

    /// Measures one section. A failure is part of the report, and the others are measured all the same.
    fn section(&mut self, section: Section, act: impl FnOnce(&Ground) -> Result<Table>) -> Result<()> {
        if !self.wants(section) {
            return Ok(());
        }
        self.ground.progress.say(format!("measuring: {section:?}"));
        let (start, before) = (Instant::now(), load());
        let text = match act(&self.ground) {
            Ok(mut table) => {
                table.note(format!("Took {} s; {before} before.", start.elapsed().as_secs()));
                table.to_string()
            }
            Err(error) => {
                self.failed = true;
                format!("## {section:?}\n\nNot measured: {error:#}\n\n")
            }
        };
        self.say(&text)
    }

    fn say(&mut self, text: &str) -> Result<()> {
        print!("{text}");
        self.report += text;
        let file = self.file();
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        fs::write(&file, &self.report).with_context(|| format!("write {}", file.display()))
    }

    fn file(&self) -> std::path::PathBuf {
        self.ground.site.target().join("bench").join("report.md")
    }
}

fn heading(ground: &Ground) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(ground.site.root()).args(["describe", "--always", "--dirty"]);
    let version = run::output(&mut git).unwrap_or_else(|_| "unknown".into());
    let kernel = run::output(Command::new("uname").args(["-sr"]))?;
    let cores = std::thread::available_parallelism().context("count the cores")?;
    Ok(format!(
        "# Towpath's figures\n\nVersion {}, {}, {cores} cores. Medians with the least and the most; p50 and p99 where told.\n\n",
        version.trim(),
        kernel.trim()
    ))
}

/// How busy the machine was in the last minute, the bench included.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load {}", text.split(' ').next().unwrap_or("unknown"))
}
