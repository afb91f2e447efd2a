//! A client whose requests a closure answers.

use std::{convert::Infallible, sync::Arc};

use axum::http::{Method, Request, Response};
use kube::{Client, client::Body};
use serde_json::Value;

/// The closure gets the method, the path and the body of a request, and gives the status code and body of the answer.
pub(crate) fn client(
    namespace: &str,
    answer: impl Fn(&Method, &str, Value) -> (u16, Value) + Send + Sync + 'static,
) -> Client {
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = Arc::clone(&answer);
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect_bytes().await.unwrap_or_default();
            let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
            let (code, value) = answer(&head.method, head.uri.path(), body);
            let body = Body::from(value.to_string().into_bytes());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    Client::new(service, namespace)
}
