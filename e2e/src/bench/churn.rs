//! A hundred changes a second for some minutes, while a policy flips: labels of pods that policies name, and policies.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::json;
use towpath_e2e::api::Api;

use crate::background::{self, Background, POLICIES};
use crate::flips::{self, Flips, PACE};
use crate::metrics::{CHANGE, Histogram};
use crate::process;
use crate::report::Table;
use crate::stream::with_stream;

const MINUTE: Duration = Duration::from_secs(60);
/// Long enough to tell memory that is reused from memory that leaks.
const MINUTES: usize = 4;
const PER_SECOND: u32 = 100;
/// Parallel writers, so that one slow write does not break the pace.
const WRITERS: usize = 4;

/// Measures flips during the changes, and memory after them.
pub(crate) fn measure(background: &mut Background<'_>) -> Result<Table> {
    background.complete()?;
    let (node, background) = (background.node()?, &*background);
    let agent = process::agent(background.cluster.name(), &node.name())?;
    let (mut memory, before) = (vec![agent.mebibytes("VmRSS")?], Histogram::read(&node, CHANGE)?);
    let used = agent.usage()?;
    let (written, took, flips) = with_stream(background.cluster, background.server(), PACE, |stream| {
        flips::prepare(&background.api)?;
        let start = Instant::now();
        let (written, flips) = while_changing(&background.api, start, || {
            let mut flips = Flips::default();
            while memory.len() <= MINUTES {
                flips.once(&background.api, stream)?;
                if start.elapsed() >= MINUTE * u32::try_from(memory.len())? {
                    memory.push(agent.mebibytes("VmRSS")?);
                }
            }
            Ok(flips)
        })?;
        Ok((written, start.elapsed(), flips))
    })?;
    flips::remove(&background.api)?;
    let mut table = flips::table();
    let rate = f64::from(u32::try_from(written)?) / took.as_secs_f64();
    let changes = Histogram::read(&node, CHANGE)?.since(&before);
    flips.rows(&format!("among {rate:.0} other changes a second"), &changes, &mut table)?;
    table.retitle("Churn");
    let memory: Vec<String> = memory.iter().map(|mebibytes| format!("{mebibytes:.1}")).collect();
    table.note(format!(
        "{written} changes in {:.0} s, half of them labels of pods that policies name, half policies; aim 100 a second, p99 below 100 ms. \
         The agent used {} ms of CPU. Its resident MiB before, and after each minute: {}.",
        took.as_secs_f64(),
        agent.usage()?.millis_since(&used),
        memory.join(", ")
    ));
    Ok(table)
}

/// Runs `act` during changes at a fixed pace from `start` on. Returns how many there were.
fn while_changing<T>(api: &Api, start: Instant, act: impl FnOnce() -> Result<T>) -> Result<(usize, T)> {
    let (stop, next) = (AtomicBool::new(false), AtomicUsize::new(0));
    let write = || -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let due = start + Duration::from_secs(1) * u32::try_from(number)? / PER_SECOND;
            // The pace of the changes, not a wait for something.
            thread::sleep(due.saturating_duration_since(Instant::now()));
            change(api, number)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(write)).collect();
        let outcome = act();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.join().map_err(|_| anyhow!("a writer panicked"))??;
        }
        // A writer that saw the end has taken a number and written nothing with it.
        Ok((next.load(Ordering::Relaxed), outcome?))
    })
}

/// Every pod that changes leaves its app and comes back the next time; every policy changes its port.
fn change(api: &Api, number: usize) -> Result<()> {
    let (index, round) = (number / 2, number / 2 / POLICIES);
    if number.is_multiple_of(2) {
        let app = if round.is_multiple_of(2) { "away".to_owned() } else { background::app(index % POLICIES) };
        // The same pods in every round, each in another app.
        api.patch(&background::pod_path(index % POLICIES), &json!({"metadata": {"labels": {"app": app}}}))
    } else {
        let port = 10_000 + (index + round + 1) % 20_000;
        let ingress = json!([background::rule(index, port)]);
        api.patch(&background::policy_path(index % POLICIES), &json!({"spec": {"ingress": ingress}}))
    }
}
