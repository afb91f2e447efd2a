//! Queries and changes a cluster with kubectl, as a person would.

use std::fs;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::run;

impl Cluster {
    /// A kubectl command for this cluster.
    #[must_use]
    pub fn kubectl_command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.tools.kubectl());
        command.env("KUBECONFIG", self.kubeconfig()).args(words);
        command
    }

    /// Runs kubectl and returns its output.
    ///
    /// # Errors
    /// When kubectl fails: the message has its output.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        run::output(&mut self.kubectl_command(words))
    }

    /// Runs kubectl and returns status and output, for calls that are expected to be refused.
    ///
    /// # Errors
    /// When kubectl cannot be started.
    pub fn kubectl_raw(&self, words: &[&str]) -> Result<Output> {
        run::raw_output(&mut self.kubectl_command(words))
    }

    /// `kubectl get … -o json`, parsed; none where the object does not exist.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn get(&self, words: &[&str]) -> Result<Option<Value>> {
        let mut all = vec!["get", "-o", "json", "--ignore-not-found"];
        all.extend(words);
        let text = self.kubectl(&all)?;
        if text.trim().is_empty() {
            return Ok(None);
        }
        serde_json::from_str(&text).map(Some).with_context(|| format!("kubectl {} printed no JSON", all.join(" ")))
    }

    /// Objects of a list, `kubectl get KIND …`.
    ///
    /// # Errors
    /// When kubectl fails.
    pub fn list(&self, words: &[&str]) -> Result<Vec<Value>> {
        let list = self.get(words)?.unwrap_or_default();
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Applies manifests server-side, as the owner `towpath-e2e`.
    ///
    /// # Errors
    /// When the API server rejects one.
    pub fn apply(&self, manifests: &str) -> Result<String> {
        self.kubectl_with_input(
            &["apply", "--server-side", "--force-conflicts", "--field-manager", "towpath-e2e", "-f", "-"],
            manifests,
        )
    }

    /// Runs kubectl with text on its standard input.
    ///
    /// # Errors
    /// When kubectl fails: the message has its output.
    pub fn kubectl_with_input(&self, words: &[&str], input: &str) -> Result<String> {
        let file = tempfile(input)?;
        run::output(self.kubectl_command(words).stdin(Stdio::from(file)))
    }
}

/// An unnamed file with some text, at its beginning: a child reads it however slowly it likes.
fn tempfile(text: &str) -> Result<fs::File> {
    use std::io::{Seek, Write};
    let path =
        std::env::temp_dir().join(format!("towpath-input-{}-{:?}", std::process::id(), std::thread::current().id()));
    let mut file = fs::File::options().read(true).write(true).create_new(true).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}
