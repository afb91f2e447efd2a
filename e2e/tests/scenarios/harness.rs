//! What scenarios share: the tools, the shared cluster with Towpath on it, and how a failure is reported.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use libtest_mimic::Failed;
use towpath_e2e::cluster::{self, Cluster, ClusterName, IpFamily, Spec};
use towpath_e2e::image::{self, Release};
use towpath_e2e::node::Node;
use towpath_e2e::progress::Progress;
use towpath_e2e::site::Site;
use towpath_e2e::toolchain::Tools;
use towpath_e2e::{deploy, run};

/// Environment variable with the shared cluster's name, so that two checkouts can run their scenarios at once.
const NAME: &str = "TOWPATH_E2E_CLUSTER";
/// Environment variable that, when set, keeps the shared cluster with Towpath on it for the next run, and reuses the
/// one of the last run: whoever writes a scenario need not wait for them each time. `make deploy CLUSTER=e2e` installs
/// another build there.
const KEEP: &str = "TOWPATH_E2E_KEEP";
const SHARED_NODES: u8 = 3;
/// Time for the network to be ready on every node.
pub(crate) const READY: Duration = Duration::from_secs(90);
/// The NetworkConfig that scenarios start from and return to.
const CONFIG: &str = "manifests/samples/default.yaml";

/// One scenario: its name is a sentence.
pub(crate) struct Scenario {
    /// A sentence that says what holds.
    pub(crate) name: &'static str,
    /// Fails if it does not hold.
    pub(crate) run: fn(&Harness) -> Result<()>,
}

/// What scenarios share, created on demand: a filter that selects no scenario starts no cluster.
pub(crate) struct Harness {
    launcher: PathBuf,
    progress: Progress,
    tools: OnceLock<(Site, Tools)>,
    shared: Mutex<Option<Cluster>>,
    /// Towpath's image, once it is installed on the shared cluster.
    installed: OnceLock<Release>,
    /// Set once the shared cluster has its network.
    deployed: OnceLock<()>,
}

impl Harness {
    pub(crate) fn new(launcher: &Path) -> Self {
        Self {
            launcher: launcher.to_path_buf(),
            progress: Progress::default(),
            tools: OnceLock::new(),
            shared: Mutex::new(None),
            installed: OnceLock::new(),
            deployed: OnceLock::new(),
        }
    }

    /// Runs a scenario; the whole chain of causes becomes the failure's text.
    pub(crate) fn run(&self, scenario: &Scenario) -> Result<(), Failed> {
        self.progress.step(format!("scenario: {}", scenario.name));
        (scenario.run)(self).map_err(|error| format!("{error:#}").into())
    }

    /// Paths of the checkout and the cache.
    pub(crate) fn site(&self) -> Result<&Site> {
        Ok(&self.tools()?.0)
    }

    /// The `towpath-cluster` binary.
    pub(crate) fn launcher(&self) -> &Path {
        &self.launcher
    }

    /// The shared cluster; started by the first scenario that asks for it.
    pub(crate) fn shared(&self) -> Result<Cluster> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = &*shared {
            // Read again: an earlier scenario may have added or removed nodes.
            let name = cluster.spec().name.clone();
            return Cluster::open(cluster.site(), cluster.tools(), &name, self.progress);
        }
        let name = shared_name();
        let (site, tools) = self.tools()?;
        let kept = std::env::var_os(KEEP).map(|_| Cluster::open(site, tools, &name.parse()?, self.progress));
        let cluster = match kept {
            Some(Ok(cluster)) => cluster,
            Some(Err(_)) | None => self.fresh(&name, SHARED_NODES)?,
        };
        *shared = Some(cluster.clone());
        Ok(cluster)
    }

    /// The shared cluster with Towpath's operator, and no network yet unless an earlier scenario made one.
    pub(crate) fn installed(&self) -> Result<Cluster> {
        let cluster = self.shared()?;
        if self.installed.get().is_none() {
            let kept = if std::env::var_os(KEEP).is_some() { installed_release(&cluster)? } else { None };
            let release = match kept {
                Some(release) => release,
                None => {
                    let release = image::build(cluster.site(), &self.progress)?;
                    deploy::install(&cluster, &release)?;
                    release
                }
            };
            self.installed.get_or_init(|| release);
        }
        Ok(cluster)
    }

    /// The shared cluster with its network Ready.
    pub(crate) fn network(&self) -> Result<Cluster> {
        let cluster = self.installed()?;
        if self.deployed.get().is_none() {
            self.apply_config(&cluster)?;
            deploy::wait_ready(&cluster, READY)?;
            self.deployed.get_or_init(|| ());
        }
        Ok(cluster)
    }

    /// Applies the NetworkConfig that users are shown.
    pub(crate) fn apply_config(&self, cluster: &Cluster) -> Result<()> {
        let file = cluster.site().root().join(CONFIG);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        cluster.apply(&text).map(drop)
    }

    /// Installs Towpath on another cluster, without a NetworkConfig.
    pub(crate) fn install_on(&self, cluster: &Cluster) -> Result<()> {
        self.installed()?;
        deploy::install(cluster, self.installed.get().context("Towpath is not installed")?)
    }

    /// Loads Towpath's image into one more node.
    pub(crate) fn load_image(&self, node: &Node) -> Result<()> {
        let release = self.installed.get().context("Towpath is not installed")?;
        node.load(&release.archive).map(drop)
    }

    /// A new cluster; what an interrupted run left of it is removed before.
    pub(crate) fn fresh(&self, name: &str, nodes: u8) -> Result<Cluster> {
        self.fresh_with(name, nodes, IpFamily::V4)
    }

    /// The same, with these IP families.
    pub(crate) fn fresh_with(&self, name: &str, nodes: u8, family: IpFamily) -> Result<Cluster> {
        let (site, tools) = self.tools()?;
        cluster::remove(site, name)?;
        let name: ClusterName = name.parse()?;
        Cluster::up(site, tools, Spec { name, family, nodes: (1..=nodes).collect() }, self.progress)
    }

    /// Runs `act`, then removes the cluster `name`, also when `act` failed.
    pub(crate) fn with_cleanup<T>(&self, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let outcome = act();
        cluster::remove(self.site()?, name).with_context(|| format!("remove cluster {name}"))?;
        outcome
    }

    /// Removes the shared cluster. After a failure its logs, the pods' among them, are kept.
    pub(crate) fn close(&self, failed: bool) -> Result<()> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((site, _)) = self.tools.get() else { return Ok(()) };
        if std::env::var_os(KEEP).is_some() {
            return Ok(());
        }
        let name = shared_name();
        let logs = site.cluster_dir(&name).join("log");
        if let Some(cluster) = shared.as_ref().filter(|_| failed) {
            keep_pod_logs(cluster, &logs);
        }
        if failed && logs.exists() {
            let kept = site.target().join("log").join("scenarios");
            if kept.exists() {
                fs::remove_dir_all(&kept).with_context(|| format!("remove {}", kept.display()))?;
            }
            fs::create_dir_all(kept.parent().context("target/log")?).context("create target/log")?;
            fs::rename(&logs, &kept).with_context(|| format!("keep the logs in {}", kept.display()))?;
            self.progress.step(format!("the cluster's logs are in {}", kept.display()));
        }
        if shared.is_some() || failed { cluster::remove(site, &name) } else { Ok(()) }
    }

    fn tools(&self) -> Result<&(Site, Tools)> {
        if let Some(ready) = self.tools.get() {
            return Ok(ready);
        }
        let site = Site::new(&self.launcher)?;
        let tools = Tools::prepare(&site, &self.progress)?;
        // Scenarios run one at a time: nobody else can have set it.
        self.tools.set((site, tools)).map_err(|_| anyhow!("two scenarios ran in parallel"))?;
        self.tools.get().context("just set")
    }
}

/// Name of the shared cluster.
pub(crate) fn shared_name() -> String {
    std::env::var(NAME).unwrap_or_else(|_| "e2e".to_owned())
}

/// What is installed on the cluster; none without an operator.
fn installed_release(cluster: &Cluster) -> Result<Option<Release>> {
    let operator = cluster.get(&["deployment", "towpath-operator", "-n", "towpath-system"])?.unwrap_or_default();
    let Some(image) = operator["spec"]["template"]["spec"]["containers"][0]["image"].as_str() else { return Ok(None) };
    let release = Release::of_checkout(cluster.site().root())?;
    Ok(Some(Release { content_name: image.to_owned(), ..release }))
}

/// Saves the logs of Towpath's pods beside those of the components. Errors are ignored: a failure is being reported
/// already.
fn keep_pod_logs(cluster: &Cluster, dir: &Path) {
    for (component, words) in [
        ("operator", ["logs", "-n", "towpath-system", "-l", "app.kubernetes.io/name=towpath-operator"]),
        ("agent", ["logs", "-n", "towpath-system", "-l", "app.kubernetes.io/name=towpath-agent"]),
    ] {
        let mut command = cluster.kubectl_command(&words);
        let said = run::raw_output(command.args(["--prefix", "--tail=2000", "--request-timeout=5s"]));
        let _ = said.map(|out| fs::write(dir.join(format!("towpath-{component}.log")), out.stdout));
    }
}
