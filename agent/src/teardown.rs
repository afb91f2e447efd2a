//! Removes everything of ours from the node.
//!
//! Order: first the CNI files, so that no pod is added; then our kernel objects; then our Node's annotations, by which peers
//! reach the node; and last our NetworkNode: the operator takes its absence for the end of the teardown. The CNI plugin stays:
//! the runtime needs it to delete the sandboxes that still exist.

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::Context;
use kube::Client;
use towpath_core::{
    model::{NodeName, Vni},
    overlay,
    ruleset::Transaction,
};
use towpath_dataplane::{net::Net, nft::Nft};
use towpath_index::flannel;
use towpath_local::{NodeState, Paths};
use towpath_node::NodePatch;
use tracing::{info, warn};

use crate::{
    error_text::with_causes,
    install::{self, CONFIG_DIR},
    publish, run,
};

/// Pause after a failed attempt.
const RETRY: Duration = Duration::from_secs(3);

/// Removes everything, tries again what fails, and then waits to be stopped.
///
/// # Errors
/// If the API server's address is not known.
pub async fn run(me: NodeName, vni: Vni) -> anyhow::Result<()> {
    let client =
        Client::try_default().await.context("find the API server: check that the ServiceAccount is mounted")?;
    loop {
        match once(&client, &me, vni).await {
            Ok(()) => break,
            Err(error) => {
                warn!(
                    error = with_causes(&*error),
                    "the network is not completely removed from this node; tried again"
                );
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    info!(node = %me, "the network is removed from this node");
    std::future::pending().await
}

async fn once(client: &Client, me: &NodeName, vni: Vni) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(remove_local).await.context("run the teardown")??;
    let annotations = flannel::annotations(vni, &BTreeMap::new());
    let annotations = annotations.into_keys().map(|name| (name.to_owned(), None)).collect();
    let patch = NodePatch { annotations, network_condition: None };
    publish::patch_node(client, me, &patch).await.context("remove our annotations from the Node")?;
    publish::delete_network_node(client, me).await.context("delete our NetworkNode")
}

/// Removes the CNI files and our kernel objects. Blocks.
fn remove_local() -> anyhow::Result<()> {
    let paths = Paths::default();
    install::remove_conflist(Path::new(CONFIG_DIR))?;
    NodeState::remove(&paths)?;
    let mut kernel = run::open_kernel(&paths)?;
    let ops = overlay::teardown(&kernel.net.read_back()?);
    if let Some(failed) = kernel.net.apply(&ops).into_iter().next() {
        return Err(failed.into());
    }
    kernel.nft.apply(&Transaction::delete()).context("delete our table")
}
