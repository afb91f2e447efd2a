//! `towpath-bench`: measures Towpath beside reference networks, and writes a report with the aim beside each figure.
//!
//! Everything runs in clusters and namespaces of its own, which are removed at the end, also when a measurement fails.

mod background;
mod churn;
mod cni;
mod connections;
mod flips;
mod idle;
mod memory;
mod metrics;
mod namespaces;
mod peers;
mod plugin;
mod pods;
mod process;
mod ready;
mod report;
mod revocation;
mod sample;
mod setup;
mod stream;
mod tampering;
mod tcp;
mod traffic;
mod upgrade;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use towpath_e2e::image::Release;
use towpath_e2e::progress::Progress;
use towpath_e2e::site::Site;
use towpath_e2e::{cluster, demo, run};

use crate::background::{Background, PODS, POLICIES};
use crate::report::Table;
use crate::setup::{BenchCluster, Setup};

/// Measures Towpath on this machine.
#[derive(Parser)]
#[command(name = "towpath-bench", version)]
struct BenchCli {
    /// Measure only this; may be given several times
    #[arg(long, value_enum)]
    only: Vec<Section>,
    /// Checkout of the release to upgrade from, in which `make image` was run
    #[arg(long)]
    from: Option<PathBuf>,
}

/// The sections of the report, in this order.
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
    /// From the write of a policy to the revocation of a connection that it denies
    Revocation,
    /// Memory of an agent that knows a large cluster
    Memory,
    /// A hundred changes a second
    Churn,
    /// New connections per second to a pod with many policies
    Connections,
    /// Foreign changes to the rules under a flood of forbidden packets
    Tampering,
    /// A thousand peers
    Peers,
    /// The whole demonstration
    Demo,
    /// An upgrade from another release under traffic; needs --from
    Upgrade,
}

const CLUSTER: &str = "bench";
const REFERENCE: &str = "bench-reference";
const BACKGROUND: &str = "bench-background";
const PEERS: &str = "bench-peers";
const UPGRADE: &str = "bench-upgrade";
const NODES: u8 = 3;

/// A run: its clusters, and the report, which is written after each section.
struct Bench {
    only: Vec<Section>,
    setup: Setup,
    report: String,
    failed: bool,
}

fn main() -> ExitCode {
    match measure(BenchCli::parse()) {
        Ok(failed) => ExitCode::from(u8::from(failed)),
        Err(error) => {
            // The chain of causes is enough: each names its step. No backtrace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(cli: BenchCli) -> Result<bool> {
    let start = Instant::now();
    let program = std::env::current_exe().context("find the path of this program")?;
    let setup = Setup::prepare(Site::new(&program.with_file_name("towpath-cluster"))?, Progress::default())?;
    let mut bench = Bench { only: cli.only, report: heading(&setup)?, setup, failed: false };
    bench.on_three_nodes()?;
    bench.with_background()?;
    bench.on_one_node()?;
    bench.demonstration()?;
    bench.upgrade(cli.from.as_deref())?;
    bench.write(&format!("The run took {} s; {}.\n", start.elapsed().as_secs(), load()))?;
    bench.setup.progress.step(format!("the report is in {}", bench.file().display()));
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
        let cluster = self.setup.cluster(CLUSTER, NODES)?;
        if self.wants(Ready) {
            let installed = self.setup.install(&cluster)?;
            self.section(Ready, |setup| ready::measure(setup, &cluster, installed))?;
        }
        // After the section above this finds everything deployed.
        self.setup.deploy(&cluster)?;
        self.section(Idle, |_| idle::measure(&cluster, "three nodes", "< 25"))?;
        self.section(Tcp, |_| tcp::measure(&cluster))?;
        self.section(Cni, |_| cni::measure(&cluster))?;
        if self.wants(Pods) {
            let reference = self.setup.cluster(REFERENCE, NODES)?;
            reference.reference_network()?;
            self.section(Pods, |_| pods::measure(&cluster, &reference))?;
        }
        Ok(())
    }

    /// On a cluster with background objects. The heavier sections come later.
    fn with_background(&mut self) -> Result<()> {
        use Section::{Churn, Connections, Flips, Idle, Memory, Revocation, Tampering};
        if ![Churn, Connections, Revocation, Flips, Tampering, Idle, Memory]
            .into_iter()
            .any(|section| self.wants(section))
        {
            return Ok(());
        }
        let cluster = self.setup.cluster(BACKGROUND, 2)?;
        self.setup.deploy(&cluster)?;
        let mut background = Background::start(&cluster)?;
        self.section(Flips, |_| flips::measure(&mut background))?;
        self.section(Revocation, |_| revocation::measure(&background))?;
        self.section(Memory, |_| memory::measure(&mut background))?;
        self.section(Idle, |_| {
            background.complete()?;
            idle::measure(&cluster, &format!("two nodes, {PODS} pods and {POLICIES} policies known"), "≤ 60")
        })?;
        self.section(Churn, |_| churn::measure(&mut background))?;
        self.section(Connections, |_| connections::measure(&mut background))?;
        self.section(Tampering, |_| tampering::measure(&mut background))
    }

    fn on_one_node(&mut self) -> Result<()> {
        if !self.wants(Section::Peers) {
            return Ok(());
        }
        let cluster: BenchCluster = self.setup.cluster(PEERS, 1)?;
        self.setup.deploy(&cluster)?;
        self.section(Section::Peers, |_| peers::measure(&cluster))
    }

    fn demonstration(&mut self) -> Result<()> {
        if !self.wants(Section::Demo) {
            return Ok(());
        }
        if !cluster::leftovers(&self.setup.site, demo::CLUSTER)?.is_empty() {
            return self
                .write("## Demonstration\n\n- Not measured: its cluster exists, and somebody may be using it.\n\n");
        }
        self.section(Section::Demo, |setup| {
            let start = Instant::now();
            let shown = demo::run(&setup.site, setup.progress);
            let took = start.elapsed();
            cluster::remove(&setup.site, demo::CLUSTER)?;
            shown?;
            let mut table = Table::new("Demonstration", &["what", "s", "aim s"]);
            table.row(["make demo, everything built".into(), format!("{:.1}", took.as_secs_f64()), "< 90".into()]);
            Ok(table)
        })
    }

    /// Without another release there is nothing to upgrade from, and only a request for it is an error.
    fn upgrade(&mut self, from: Option<&Path>) -> Result<()> {
        let Some(from) = from else {
            ensure!(!self.only.contains(&Section::Upgrade), "--from names the checkout of the release to upgrade from");
            return Ok(());
        };
        if !self.wants(Section::Upgrade) {
            return Ok(());
        }
        let from = Release::of_checkout(from)?;
        let cluster = self.setup.cluster(UPGRADE, NODES)?;
        self.section(Section::Upgrade, |setup| upgrade::measure(setup, &cluster, &from))
    }

    /// Measures one section. A failure goes into the report, and the other sections are measured nevertheless.
    fn section(&mut self, section: Section, act: impl FnOnce(&Setup) -> Result<Table>) -> Result<()> {
        if !self.wants(section) {
            return Ok(());
        }
        self.setup.progress.step(format!("measuring: {section:?}"));
        let (start, before) = (Instant::now(), load());
        let text = match act(&self.setup) {
            Ok(mut table) => {
                table.note(format!("Took {} s; {before} before.", start.elapsed().as_secs()));
                table.to_string()
            }
            Err(error) => {
                self.failed = true;
                format!("## {section:?}\n\nNot measured: {error:#}\n\n")
            }
        };
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        print!("{text}");
        self.report += text;
        let file = self.file();
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        fs::write(&file, &self.report).with_context(|| format!("write {}", file.display()))
    }

    fn file(&self) -> PathBuf {
        self.setup.site.target().join("bench").join("report.md")
    }
}

fn heading(setup: &Setup) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(setup.site.root()).args(["describe", "--always", "--dirty"]);
    let version = run::output(&mut git).unwrap_or_else(|_| "unknown".into());
    let kernel = run::output(Command::new("uname").args(["-sr"]))?;
    let cores = std::thread::available_parallelism().context("count the cores")?;
    Ok(format!(
        "# Towpath benchmarks\n\nVersion {}, {}, {cores} cores. Medians (minimum–maximum), p50 and p99 where named.\n\n",
        version.trim(),
        kernel.trim()
    ))
}

/// The load average of the last minute, the bench included.
fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("load {}", text.split(' ').next().unwrap_or("unknown"))
}
