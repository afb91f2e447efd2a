//! Writes to the API server through one `kubectl proxy`, which saves the start of a kubectl per write.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::cluster::Cluster;

/// Number of parallel writers.
const WRITERS: usize = 8;

/// A running `kubectl proxy`, which ends when this value is dropped.
#[derive(Debug)]
pub struct Api {
    proxy: Child,
    address: String,
}

impl Api {
    /// Starts `kubectl proxy`.
    ///
    /// # Errors
    /// When kubectl cannot be started or does not print its address.
    pub fn open(cluster: &Cluster) -> Result<Self> {
        let mut command = cluster.kubectl_command(&["proxy", "--port=0"]);
        let mut proxy = command.stdout(Stdio::piped()).spawn().context("start kubectl proxy")?;
        let said = proxy.stdout.take().context("kubectl proxy has no output")?;
        let mut api = Self { proxy, address: String::new() };
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).context("read the address of kubectl proxy")?;
        let address = line.trim().rsplit_once(' ').map(|(_, address)| address.to_owned());
        api.address = address.with_context(|| format!("kubectl proxy printed {line:?} and no address"))?;
        Ok(api)
    }

    /// Creates an object in the collection `path`.
    ///
    /// # Errors
    /// When the API server rejects it.
    pub fn create(&self, path: &str, object: &Value) -> Result<()> {
        self.call("POST", path, "application/json", &object.to_string())
    }

    /// Creates several objects, some at once.
    ///
    /// # Errors
    /// When the API server rejects one.
    pub fn create_all(&self, path: &str, objects: &[Value]) -> Result<()> {
        self.each(objects, |object| self.create(path, object))
    }

    /// Calls `act` for each item, several at once.
    ///
    /// # Errors
    /// With the first error of `act`.
    pub fn each<T: Sync>(&self, things: &[T], act: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
        let next = AtomicUsize::new(0);
        let write = || -> Result<()> {
            while let Some(thing) = things.get(next.fetch_add(1, Ordering::Relaxed)) {
                act(thing)?;
            }
            Ok(())
        };
        thread::scope(|scope| {
            let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
            let mut ends =
                writers.into_iter().map(|writer| writer.join().unwrap_or_else(|_| Err(anyhow!("a writer panicked"))));
            ends.try_for_each(|end| end)
        })
    }

    /// Changes some fields of an object.
    ///
    /// # Errors
    /// When the API server rejects it.
    pub fn patch(&self, path: &str, fields: &Value) -> Result<()> {
        self.call("PATCH", path, "application/merge-patch+json", &fields.to_string())
    }

    /// Deletes an object, or all of a collection, without grace.
    ///
    /// # Errors
    /// When the API server rejects it.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.call("DELETE", path, "application/json", r#"{"gracePeriodSeconds":0}"#)
    }

    fn call(&self, verb: &str, path: &str, kind: &str, body: &str) -> Result<()> {
        let mut stream = TcpStream::connect(&self.address).context("connect to kubectl proxy")?;
        stream.set_nodelay(true)?;
        let head = format!(
            "{verb} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all((head + body).as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).with_context(|| format!("read the answer to {verb} {path}"))?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2'), "the API server rejected {verb} {path}: {answer}");
        Ok(())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // It may have ended already; either way it is reaped.
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
    }
}
