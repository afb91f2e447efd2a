//! `towpath-cluster`: the embedded cluster from the command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use towpath_e2e::cluster::{self, Cluster, ClusterName, IpFamily, Spec};
use towpath_e2e::progress::Progress;
use towpath_e2e::site::Site;
use towpath_e2e::toolchain::Tools;
use towpath_e2e::{demo, deny, deploy, image, node, prepare, process, unit};

/// Runs a real Kubernetes on this machine, and Towpath on it.
#[derive(Parser)]
#[command(name = "towpath-cluster", version)]
struct ClusterCli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build and install what a cluster needs
    Toolchain,
    /// Build and install what a cluster needs, and Towpath's image
    Prepare,
    /// Start a cluster without a pod network
    Up {
        /// Name of the cluster
        #[arg(long, default_value = "towpath")]
        name: ClusterName,
        /// Number of nodes
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(Spec::MAX_NODES)))]
        nodes: u8,
        /// IP families of pods, Services and nodes
        #[arg(long, value_enum, default_value = "v4")]
        ip_family: IpFamily,
    },
    /// Import an image archive (docker or OCI) into every node
    Load {
        /// Name of the cluster
        #[arg(long, default_value = "towpath")]
        name: ClusterName,
        /// Path of the archive
        #[arg(long)]
        image: PathBuf,
    },
    /// Build Towpath's image
    Image,
    /// Install Towpath on a cluster and wait until its network is Ready
    Deploy {
        /// Name of the cluster
        #[arg(long, default_value = "towpath")]
        name: ClusterName,
        /// File with the NetworkConfig
        #[arg(long, default_value = "manifests/samples/default.yaml")]
        config: PathBuf,
    },
    /// Check the dependencies' licences and sources
    Deny,
    /// Run every test that needs neither root nor a cluster
    Unit,
    /// Start a cluster, install Towpath, show traffic and a policy
    Demo,
    /// Give a cluster the reference network: a bridge and static routes
    Reference {
        /// Name of the cluster
        #[arg(long, default_value = "towpath")]
        name: ClusterName,
    },
    /// Remove a cluster with its processes, namespaces and files
    Down {
        /// Name of the cluster
        #[arg(long, default_value = "towpath")]
        name: ClusterName,
    },
    /// Execute a program in a control group and network namespace of a cluster
    #[command(hide = true)]
    Launch {
        #[arg(long)]
        group: String,
        #[arg(long)]
        netns: Option<String>,
        #[arg(long)]
        pid_file: PathBuf,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Forward a loopback port to a cluster's API server
    #[command(hide = true)]
    Forward {
        #[arg(long)]
        netns: String,
        #[arg(long)]
        to: SocketAddr,
        #[arg(long)]
        port_file: PathBuf,
    },
    /// Create the namespaces of a node and wait for its first process
    #[command(hide = true)]
    Node {
        #[arg(long)]
        spec: PathBuf,
    },
    /// Run as the first process of a node
    #[command(hide = true)]
    NodeInit {
        #[arg(long)]
        spec: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(ClusterCli::parse().action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes is enough: each names its step. No backtrace.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<()> {
    let progress = Progress::default();
    let site = || Site::new(&std::env::current_exe().context("find the path of this program")?);
    match action {
        Action::Toolchain => Tools::prepare(&site()?, &progress).map(drop),
        Action::Prepare => prepare::all(&site()?, &progress).map(drop),
        Action::Up { name, nodes, ip_family } => {
            let site = site()?;
            let tools = Tools::prepare(&site, &progress)?;
            let spec = Spec { name, family: ip_family, nodes: (1..=nodes).collect() };
            Cluster::up(&site, &tools, spec, progress).map(drop)
        }
        Action::Load { name, image } => {
            let site = site()?;
            let cluster = Cluster::open(&site, &Tools::prepare(&site, &progress)?, &name, progress)?;
            let names = cluster.load(&image)?;
            progress.step(format!("loaded into {} nodes: {}", cluster.nodes().len(), names.join(", ")));
            Ok(())
        }
        Action::Image => image::build(&site()?, &progress).map(drop),
        Action::Deploy { name, config } => {
            let site = site()?;
            let cluster = Cluster::open(&site, &Tools::prepare(&site, &progress)?, &name, progress)?;
            deploy::deploy(&cluster, &image::build(&site, &progress)?, &config)?;
            progress.step(format!("Towpath is Ready on cluster {name}"));
            Ok(())
        }
        Action::Deny => deny::check(&site()?, &progress),
        Action::Unit => unit::run(&site()?),
        Action::Demo => demo::run(&site()?, progress),
        Action::Reference { name } => {
            let site = site()?;
            Cluster::open(&site, &Tools::prepare(&site, &progress)?, &name, progress)?.reference_network()?;
            progress.step("the nodes are Ready with the reference network");
            Ok(())
        }
        Action::Down { name } => {
            cluster::remove(&site()?, name.as_str())?;
            progress.step(format!("cluster {name} is removed"));
            Ok(())
        }
        Action::Launch { group, netns, pid_file, command } => {
            process::launch(&group, netns.as_deref(), &pid_file, &command)
        }
        Action::Forward { netns, to, port_file } => cluster::serve_forward(&netns, to, &port_file),
        Action::Node { spec } => node::hold(&spec),
        Action::NodeInit { spec } => node::init(&spec),
    }
}
