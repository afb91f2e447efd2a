//! Changes a running cluster: images, nodes.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, Spec};
use crate::pki::Authority;

impl Cluster {
    /// Imports an image archive (docker or OCI) into every node, all nodes at once. Returns the names of the images.
    ///
    /// # Errors
    /// When the archive is unreadable or a node refuses it: the message names the node.
    pub fn load(&self, archive: &Path) -> Result<Vec<String>> {
        let nodes = self.nodes();
        let results: Vec<Result<Vec<String>>> = std::thread::scope(|scope| {
            let handles: Vec<_> = nodes.iter().map(|node| scope.spawn(move || node.load(archive))).collect();
            handles
                .into_iter()
                .map(|handle| handle.join().unwrap_or_else(|_| bail!("the import's thread panicked")))
                .collect()
        });
        let mut names = Vec::new();
        for (node, result) in nodes.iter().zip(results) {
            names = result.with_context(|| format!("load {} into node {}", archive.display(), node.name()))?;
        }
        Ok(names)
    }

    /// Adds one more node and waits until it is registered. Returns its name.
    ///
    /// # Errors
    /// When the node does not come up: the message has the failing component's log.
    pub fn add_node(&mut self) -> Result<String> {
        let number = self.spec.nodes.iter().max().map_or(1, |last| last + 1);
        ensure!(number <= Spec::MAX_NODES, "a cluster has at most {} nodes", Spec::MAX_NODES);
        self.spec.nodes.push(number);
        self.save()?;
        let node = self.node_numbered(number);
        node.create(&Authority::open(&self.pki_dir())?)?;
        let running = node.start()?;
        node.admit()?;
        self.wait_registered(std::slice::from_ref(&node), || running.check())?;
        Ok(node.name())
    }

    /// Removes a node, as when a machine is lost: deletes its API object, kills its processes.
    ///
    /// # Errors
    /// When the cluster has none of that name, or something of it stays.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        self.kubectl(&["delete", "node", name, "--ignore-not-found"])?;
        node.destroy()?;
        self.spec.nodes.retain(|number| *number != node.number());
        self.save()
    }
}
