//! Removes everything of ours from the node.
//!
//! Order: first nothing new comes (configuration list, node values), then what exists goes, then peers are told, and
//! last our NetworkNode, which is how the operator knows that the node is done. The CNI plugin itself stays: the runtime
//! needs it to delete the sandboxes that still exist.

use std::{collections::BTreeMap, error::Error, path::Path, time::Duration};

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
use tracing::{info, warn};

use crate::{
    effects::CONFIG_DIR,
    install,
    publish::{self, NodeWish},
    run,
};

/// Pause after a failed attempt.
const RETRY: Duration = Duration::from_secs(3);

/// Removes everything, as often as it takes, and then waits to be stopped.
///
/// # Errors
/// If the API server's address is not known.
pub async fn run(me: NodeName, vni: Vni) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("find the API server: is the ServiceAccount mounted?")?;
    loop {
        match once(&client, &me, vni).await {
            Ok(()) => break,
            Err(error) => {
                warn!(error = &*error as &dyn Error, "not everything of the network is removed; tried again");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    info!(node = %me, "everything of the network is removed from this node");
    std::future::pending().await
}

async fn once(client: &Client, me: &NodeName, vni: Vni) -> anyhow::Result<()> {
    let paths = Paths::default();
    install::remove_conflist(Path::new(CONFIG_DIR))?;
    NodeState::remove(&paths)?;
    let mut reach = run::reach(&paths)?;
    let ops = overlay::teardown(&reach.net.read_back()?);
    if let Some(failed) = reach.net.apply(&ops).into_iter().next() {
        return Err(failed.into());
    }
    reach.nft.apply(&Transaction::delete()).context("delete our table")?;
    let annotations = flannel::annotations(vni, &BTreeMap::new());
    let annotations = annotations.into_keys().map(|name| (name.to_owned(), None)).collect();
    publish::patch_node(client, me, &NodeWish { annotations, network_unavailable: None })
        .await
        .context("clear our Node")?;
    publish::delete_report(client, me).await.context("delete our NetworkNode")
}
