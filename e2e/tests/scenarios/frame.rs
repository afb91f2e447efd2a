//! What scenarios share: the tools, the shared cluster, and the way a failure is told.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, Result, anyhow};
use libtest_mimic::Failed;
use towpath_e2e::cluster::{self, Cluster, ClusterName, IpFamily, Spec};
use towpath_e2e::progress::Progress;
use towpath_e2e::site::Site;
use towpath_e2e::toolchain::Tools;

/// Name of the shared cluster.
pub(crate) const SHARED: &str = "e2e";
const SHARED_NODES: u8 = 3;

/// One scenario: its name is a sentence.
pub(crate) struct Scenario {
    /// The sentence.
    pub(crate) name: &'static str,
    /// What happens.
    pub(crate) play: fn(&Frame) -> Result<()>,
}

/// What scenarios share. Made lazily: a filter that selects no scenario starts no cluster.
pub(crate) struct Frame {
    launcher: PathBuf,
    progress: Progress,
    workshop: OnceLock<(Site, Tools)>,
    shared: Mutex<Option<Cluster>>,
}

impl Frame {
    pub(crate) fn new(launcher: &Path) -> Self {
        Self {
            launcher: launcher.to_path_buf(),
            progress: Progress::default(),
            workshop: OnceLock::new(),
            shared: Mutex::new(None),
        }
    }

    /// Runs a scenario; its whole chain of causes becomes the failure's text.
    pub(crate) fn play(&self, scenario: &Scenario) -> Result<(), Failed> {
        self.progress.say(format!("scenario: {}", scenario.name));
        (scenario.play)(self).map_err(|error| format!("{error:#}").into())
    }

    /// Where things are.
    pub(crate) fn site(&self) -> Result<&Site> {
        Ok(&self.workshop()?.0)
    }

    /// The binary that a person would call.
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
        let cluster = self.fresh(SHARED, SHARED_NODES)?;
        *shared = Some(cluster.clone());
        Ok(cluster)
    }

    /// A new cluster; what an interrupted run left of it is removed before.
    pub(crate) fn fresh(&self, name: &str, nodes: u8) -> Result<Cluster> {
        let (site, tools) = self.workshop()?;
        cluster::remove(site, name)?;
        let name: ClusterName = name.parse()?;
        Cluster::up(site, tools, Spec { name, family: IpFamily::V4, nodes: (1..=nodes).collect() }, self.progress)
    }

    /// Runs `act`, then removes the cluster `name`, also when `act` failed.
    pub(crate) fn with_cleanup<T>(&self, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let outcome = act();
        cluster::remove(self.site()?, name).with_context(|| format!("remove cluster {name}"))?;
        outcome
    }

    /// Removes the shared cluster. After a failure its logs are kept.
    pub(crate) fn close(&self, failed: bool) -> Result<()> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((site, _)) = self.workshop.get() else { return Ok(()) };
        let logs = site.cluster_dir(SHARED).join("log");
        if failed && logs.exists() {
            let kept = site.target().join("log").join("scenarios");
            if kept.exists() {
                fs::remove_dir_all(&kept).with_context(|| format!("remove {}", kept.display()))?;
            }
            fs::create_dir_all(kept.parent().context("target/log")?).context("create target/log")?;
            fs::rename(&logs, &kept).with_context(|| format!("keep the logs in {}", kept.display()))?;
            self.progress.say(format!("the cluster's logs are in {}", kept.display()));
        }
        if shared.is_some() || failed { cluster::remove(site, SHARED) } else { Ok(()) }
    }

    fn workshop(&self) -> Result<&(Site, Tools)> {
        if let Some(ready) = self.workshop.get() {
            return Ok(ready);
        }
        let site = Site::new(&self.launcher)?;
        let tools = Tools::prepare(&site, &self.progress)?;
        // Scenarios run one at a time: nobody else can have set it meanwhile.
        self.workshop.set((site, tools)).map_err(|_| anyhow!("two scenarios ran at once"))?;
        self.workshop.get().context("just set")
    }
}
