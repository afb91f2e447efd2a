//! The watches against an API server in memory.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::*;

/// The queries of lists and watches of pods, in their order.
type Asked = Arc<Mutex<Vec<String>>>;

fn pod(name: &str, version: u32, spec: impl Into<Value>) -> Value {
    let spec = spec.into();
    json!({ "metadata": { "namespace": "a", "name": name, "resourceVersion": version.to_string() }, "spec": spec })
}

/// What the first requests for pods get: two pages of a list, and a watch that breaks off. Then nothing ends any more.
fn answers() -> Vec<String> {
    let page = |items: Value, more: &str| {
        let metadata = json!({ "resourceVersion": "9", "continue": more });
        json!({ "kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items }).to_string()
    };
    let event = |kind: &str, object: Value| json!({ "type": kind, "object": object }).to_string() + "\n";
    vec![
        page(json!([pod("first", 1, json!({})), pod("bad", 2, json!("none"))]), "more"),
        page(json!([pod("last", 3, json!({}))]), ""),
        [
            event("MODIFIED", pod("first", 10, json!({ "containers": 7 }))),
            event("ADDED", json!({ "metadata": { "name": ["odd"], "resourceVersion": "11" } })),
            event("ADDED", pod("new", 12, json!({ "volumes": "of tomorrow" }))),
            event("DELETED", pod("last", 13, json!("none"))),
            event("MODIFIED", pod("bad", 14, json!({}))),
        ]
        .concat(),
    ]
}

fn server() -> (Client, Asked) {
    let asked = Asked::default();
    let queries = Arc::clone(&asked);
    let service = tower::service_fn(move |request: Request<Body>| {
        let uri = request.uri().clone();
        let answer = (uri.path() == "/api/v1/pods").then(|| {
            let mut queries = queries.lock().expect("nobody panics with it");
            queries.push(uri.query().unwrap_or_default().to_owned());
            answers().into_iter().nth(queries.len() - 1)
        });
        async move {
            match answer.flatten() {
                Some(text) => Ok::<_, Infallible>(Response::new(Body::from(text.into_bytes()))),
                None => std::future::pending().await,
            }
        }
    });
    (Client::new(service, "default"), asked)
}

/// What the next change of a pod says, within a bound.
async fn next(events: &mut UnboundedReceiver<Event>) -> String {
    let change = async {
        loop {
            if let Some(Event::Pod(change)) = events.recv().await {
                return change;
            }
        }
    };
    let change = tokio::time::timeout(Duration::from_secs(10), change).await.expect("a change within ten seconds");
    let name = |pod: Pod| pod.metadata.name.unwrap_or_default();
    match *change {
        ObjectChange::Applied(pod) => format!("applied {}", name(pod)),
        ObjectChange::Deleted(pod) => format!("deleted {}", name(pod)),
        ObjectChange::ListStarted => "list".to_owned(),
        ObjectChange::Listed(pod) => format!("listed {}", name(pod)),
        ObjectChange::Undecodable(pod) => format!("undecodable {}", name(pod)),
        ObjectChange::ListDone => "list done".to_owned(),
    }
}

#[tokio::test(flavor = "current_thread")]
async fn no_object_stops_a_watch_whatever_it_looks_like_and_what_is_asked_for_is_what_is_used() {
    let (client, asked) = server();
    let (to, mut events) = mpsc::unbounded_channel::<Event>();
    spawn(&client, &to);
    for (expected, why) in [
        ("list", "nothing was known"),
        ("listed first", "the first page"),
        ("undecodable bad", "a page comes to its end with a bad object"),
        ("listed last", "the second page"),
        ("list done", "all is known"),
        ("undecodable first", "one that was decodable before"),
        ("undecodable ", "one that has not even a name"),
        ("applied new", "a form of tomorrow where nobody reads"),
        ("deleted last", "to go, its name is enough"),
        ("applied bad", "it has been corrected"),
    ] {
        assert_eq!(next(&mut events).await, expected, "{why}");
    }
    let all_asked = async {
        while asked.lock().unwrap().len() < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), all_asked).await.expect("the watch goes on within ten seconds");
    let asked = asked.lock().unwrap();
    let selector = "fieldSelector=status.phase%21%3DSucceeded%2Cstatus.phase%21%3DFailed";
    assert!(asked.iter().all(|query| query.contains(selector)), "{asked:?}");
    assert!(asked[..2].iter().all(|query| query.contains(&format!("limit={PAGE_SIZE}"))), "{asked:?}");
    assert!(asked[2].contains("resourceVersion=9") && asked[3].contains("resourceVersion=14"), "{asked:?}");
}
