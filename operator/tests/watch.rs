//! The watches against an API server in memory: what becomes of objects that cannot be decoded.
#![expect(clippy::unwrap_used, reason = "a step that fails ends the test")]

use std::{
    convert::Infallible,
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::http::{Request, Response};
use futures::StreamExt;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use towpath_operator::{
    cluster::ClusterEvent,
    metrics::{self, Metrics},
    store::ObjectEvent,
    watch::{ClusterEvents, start_watches},
};

fn node(name: &str, version: u32, spec: impl Into<Value>) -> Value {
    json!({ "metadata": { "name": name, "resourceVersion": version.to_string() }, "spec": spec.into() })
}

/// The answers to the requests for Nodes, in order: two pages of a list, a watch that the server ends with "too old", a
/// second list, and a watch that stays open.
fn answers() -> Vec<String> {
    let page = |items: Value, more: &str| {
        let metadata = json!({ "resourceVersion": "9", "continue": more });
        json!({ "kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items }).to_string()
    };
    let event = |kind: &str, object: Value| json!({ "type": kind, "object": object }).to_string() + "\n";
    let too_old = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
        "message": "too old resource version" });
    vec![
        page(json!([node("good", 1, json!({})), node("bad", 2, "none")]), "more"),
        page(json!([node("last", 3, json!({ "podCIDR": "10.244.0.0/24" }))]), ""),
        [
            event("MODIFIED", node("good", 10, json!({ "podCIDR": 7 }))),
            event("MODIFIED", node("good", 11, json!({ "podCIDR": 7 }))),
            event("DELETED", node("last", 12, "none")),
            event("ERROR", too_old),
        ]
        .concat(),
        page(json!([node("good", 11, json!({ "podCIDR": 7 })), node("bad", 2, "none")]), ""),
        event("MODIFIED", node("good", 13, json!({}))) + &event("MODIFIED", node("good", 14, json!({ "podCIDR": 7 }))),
    ]
}

fn server() -> Client {
    let requests = Arc::new(Mutex::new(0_usize));
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = (request.uri().path() == "/api/v1/nodes").then(|| {
            let mut requests = requests.lock().unwrap();
            *requests += 1;
            answers().into_iter().nth(*requests - 1)
        });
        async move {
            match answer.flatten() {
                Some(text) => Ok::<_, Infallible>(Response::new(Body::from(text.into_bytes()))),
                None => std::future::pending().await,
            }
        }
    });
    Client::new(service, "default")
}

/// The next event about a Node, in words. The other watches wait for their first answer for ever.
async fn next(events: &mut ClusterEvents) -> String {
    let event = async {
        loop {
            if let Some(ClusterEvent::Node(event)) = events.next().await {
                return event;
            }
        }
    };
    let event = tokio::time::timeout(Duration::from_secs(30), event).await.expect("an event within 30 s");
    match event {
        ObjectEvent::ListStarted => "list".to_owned(),
        ObjectEvent::Listed(name, _) => format!("listed {name}"),
        ObjectEvent::ListedUndecodable(name) => format!("listed undecodable {name}"),
        ObjectEvent::ListDone => "list done".to_owned(),
        ObjectEvent::Applied(name, _) => format!("applied {name}"),
        ObjectEvent::Undecodable(name) => format!("undecodable {name}"),
        ObjectEvent::Deleted(name) => format!("deleted {name}"),
        ObjectEvent::NotServed => "not served".to_owned(),
    }
}

#[derive(Clone, Default)]
struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn an_undecodable_object_is_not_deleted_does_not_stop_the_watch_and_is_logged_once() {
    let log = LogBuffer::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().json().with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let metrics = Metrics::default();
    let mut events = start_watches(&server(), &metrics);
    for (expected, why) in [
        ("list", "nothing was known"),
        ("listed good", "the first page"),
        ("listed undecodable bad", "the page goes on"),
        ("listed last", "the second page"),
        ("list done", "all is known"),
        ("undecodable good", "it was decoded before"),
        ("undecodable good", "the same error again"),
        ("deleted last", "to delete it, its name is enough"),
        ("list", "the server has forgotten where the watch was"),
        ("listed undecodable good", "still"),
        ("listed undecodable bad", "still"),
        ("list done", "nothing has changed"),
        ("applied good", "repaired"),
        ("undecodable good", "and broken again"),
    ] {
        assert_eq!(next(&mut events).await, expected, "{why}");
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let errors = |name: &str| {
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line["level"] == "ERROR" && line["fields"]["name"] == name).count()
    };
    assert_eq!(errors("bad"), 1, "{log}");
    assert_eq!(errors("good"), 2, "once for each time it breaks: {log}");
    let text = metrics::render(&metrics.registry()).unwrap();
    assert!(text.contains("towpath_operator_unreadable_objects_total{kind=\"Node\"} 6"), "{text}");
}
