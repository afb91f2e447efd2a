//! Reads an agent's `/metrics`.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use towpath_e2e::node::Node;

use crate::namespaces::Namespaces;

/// Where agents serve their metrics.
const PORT: u16 = 9817;
/// Counter of revoked connections.
pub(crate) const REVOKED: &str = "towpath_agent_connections_cut_total";
/// From the arrival of a change of policy at the agent to its commit in the kernel.
pub(crate) const CHANGE: &str = "towpath_agent_policy_change_seconds";

/// A histogram: counts of values up to the end of each bucket, in ascending order.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Histogram(Vec<(f64, f64)>);

/// The metrics of the agent of a node, as text.
fn scrape(node: &Node) -> Result<String> {
    let answer = Namespaces::of_node(node)?.run(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).context("connect to the agent")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    ensure!(answer.contains(" 200 "), "the agent of {} answered {answer}", node.name());
    Ok(answer)
}

/// A gauge or counter of the agent of a node.
pub(crate) fn value(node: &Node, name: &str) -> Result<f64> {
    let text = scrape(node)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.with_context(|| format!("the agent of {} has no metric {name}", node.name()))
}

impl Histogram {
    pub(crate) fn read(node: &Node, name: &str) -> Result<Self> {
        let found = Self::parse(&scrape(node)?, name);
        ensure!(!found.0.is_empty(), "the agent of {} has no histogram {name}", node.name());
        Ok(found)
    }

    fn parse(text: &str, name: &str) -> Self {
        let bucket = |line: &str| {
            let (end, rest) = line.strip_prefix(name)?.strip_prefix("_bucket{le=\"")?.split_once("\"}")?;
            let end = if end == "+Inf" { f64::INFINITY } else { end.parse().ok()? };
            Some((end, rest.split_whitespace().next()?.parse().ok()?))
        };
        Self(text.lines().filter_map(bucket).collect())
    }

    /// What was added since an earlier look.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self(self.0.iter().zip(&earlier.0).map(|((end, now), (_, then))| (*end, now - then)).collect())
    }

    /// Upper end in milliseconds of the bucket in which the percentile lies, as text.
    pub(crate) fn millis(&self, percent: u32) -> String {
        let total = self.0.last().map_or(0.0, |(_, count)| *count);
        let rank = total * f64::from(percent) / 100.0;
        match self.0.iter().find(|(_, count)| *count >= rank && *count > 0.0) {
            Some((end, _)) if end.is_finite() => format!("≤ {:.1}", end * 1e3),
            Some(_) => "more than the largest bucket".into(),
            None => "none".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_the_end_of_its_bucket() {
        let text = "x_bucket{le=\"0.001\"} 90\nx_bucket{le=\"0.002\"} 99\nx_bucket{le=\"+Inf\"} 100\nx_count 100\n";
        let histogram = Histogram::parse(text, "x");
        for (percent, want) in [(50, "≤ 1.0"), (99, "≤ 2.0"), (100, "more than the largest bucket")] {
            assert_eq!(histogram.millis(percent), want);
        }
        assert_eq!(histogram.since(&histogram).millis(50), "none");
    }
}
