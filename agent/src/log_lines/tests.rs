//! The log as a log collector reads it.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use towpath_core::{
    model::{PodId, Protocol},
    names::IfName,
    policy::{
        eval::RuleId,
        ir::{Direction, PolicyId},
    },
};
use towpath_node::{
    Attachment,
    explain::{DenialCause, LoggedBy, PacketPeer, Payload},
};
use tracing_subscriber::fmt::MakeWriter;

use super::*;

/// Keeps what is written.
#[derive(Debug, Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Captured {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// The lines that the agent writes in its format.
fn captured(write: impl FnOnce()) -> Vec<String> {
    let captured = Captured::default();
    let log = crate::run::log_format().with_max_level(tracing::Level::TRACE).with_writer(captured.clone()).finish();
    tracing::subscriber::with_default(log, write);
    let text = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// The keys of a JSON object, in their order.
fn keys(line: &str) -> Vec<String> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
            let mut keys = Vec::new();
            while let Some((key, IgnoredAny)) = map.next_entry()? {
                keys.push(key);
            }
            Ok(keys)
        }
    }
    serde_json::Deserializer::from_str(line).deserialize_map(Keys).unwrap()
}

fn assert_unique_keys(lines: &[String], expected: usize) {
    assert_eq!(lines.len(), expected, "{lines:#?}");
    for line in lines {
        let keys = keys(line);
        let unique: BTreeSet<&String> = keys.iter().collect();
        assert_eq!(unique.len(), keys.len(), "a key occurs twice: {line}");
        assert!(unique.contains(&"message".to_owned()), "{line}");
    }
}

fn every_line() -> Vec<LogLine> {
    let attachment = Attachment { container_id: "c".to_owned(), ifname: IfName::new("eth0").unwrap() };
    let steps = [FailedStep::ReadBack, FailedStep::Apply, FailedStep::Reevaluate, FailedStep::Flush];
    let failed = steps.into_iter().flat_map(|step| {
        [true, false].map(|first| LogLine::Failed { step, error: "e".to_owned(), retry_in: Duration::ZERO, first })
    });
    failed
        .chain([
            LogLine::CniReady { mtu: 1450 },
            LogLine::CniNotReady { error: "no space".to_owned() },
            LogLine::ConditionChanged {
                condition: "Ready".to_owned(),
                status: "True".to_owned(),
                reason: "DataPathReady".to_owned(),
                detail: "d".to_owned(),
            },
            LogLine::DriftRepaired { repairs: 1, first: "f".to_owned() },
            LogLine::PodVanished { attachment: attachment.clone() },
            LogLine::PodTimedOut { attachment, reason: "r" },
            LogLine::Revoked { count: 1, took: Duration::ZERO, examples: "x".to_owned() },
            LogLine::Restored { count: 1, took: Duration::ZERO },
        ])
        .collect()
}

#[test]
fn no_key_occurs_twice_in_a_line() {
    let lines = every_line();
    let written = captured(|| lines.iter().for_each(write));
    assert_unique_keys(&written, lines.len());
}

#[test]
fn no_key_occurs_twice_in_a_line_about_packets() {
    let pod = PodId { namespace: "a".to_owned(), name: "web".to_owned() };
    let (direction, payload) = (Direction::Ingress, Payload::Port(Protocol::Tcp, 80));
    let peer = PacketPeer { address: [192, 0, 2, 1].into(), pod: None };
    let policy = PolicyId { namespace: "a".to_owned(), name: "p".to_owned() };
    let cause = DenialCause::Rule { policy: policy.clone(), rule: 0 };
    let denial = Denial { pod: pod.clone(), direction, peer: peer.clone(), payload, cause };
    let by = LoggedBy { rules: vec![RuleId { policy, rule: 0 }], more: 0 };
    let packet = LoggedPacket { pod, direction, peer, payload, cause: by };
    let written = captured(|| {
        write_denied(&PacketLine::First(denial.clone(), 1));
        write_denied(&PacketLine::Continued(denial, 1));
        write_denied(&PacketLine::Suppressed(1));
        write_logged(&PacketLine::First(packet.clone(), 1));
        write_logged(&PacketLine::Continued(packet, 1));
        write_logged(&PacketLine::Suppressed(1));
    });
    assert_unique_keys(&written, 6);
    assert!(written[0].contains(r#""peer":"192.0.2.1","payload":"TCP port 80""#), "{}", written[0]);
}

/// The format has keys of its own, so that a field of the same name would occur twice.
#[test]
fn no_line_of_the_agent_has_a_field_that_is_named_as_one_of_the_format() {
    let mut files = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut calls = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for call in
            ["error!(", "warn!(", "info!(", "debug!(", "trace!("].iter().flat_map(|name| text.split(name).skip(1))
        {
            calls += 1;
            let fields = call[..call.find(';').unwrap_or(call.len())].split('"').next().unwrap_or_default();
            for field in fields.split(',').map(|field| field.split('=').next().unwrap_or_default()) {
                let name = field.trim().trim_start_matches(['%', '?']);
                assert!(!["message", "level", "target", "timestamp"].contains(&name), "{}: {fields}", path.display());
            }
        }
    }
    assert!(calls > 20, "{calls} calls were found");
}
