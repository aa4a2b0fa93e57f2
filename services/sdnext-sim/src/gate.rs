//! What every request passes before its endpoint: headers, credentials, the rate limit, a free worker.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::answers::http_exception;
use crate::connection::{Connection, Peer};
use crate::encode::decode_base64;
use crate::sim::Sim;

/// The connection of a request, if this crate's own server accepted it.
pub(crate) fn connection(request: &Request) -> Option<Arc<Connection>> {
    request.extensions().get::<ConnectInfo<Peer>>().map(|info| info.0.0.clone())
}

pub(crate) fn address(connection: Option<&Arc<Connection>>) -> IpAddr {
    connection.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |connection| connection.address().ip())
}

/// Marks the connection as busy and adds the headers that the recorded server adds.
pub(crate) async fn headers(request: Request, next: Next) -> Response {
    let busy = connection(&request).map(|connection| connection.busy());
    let began = Instant::now();
    let mut response = next.run(request).await;
    let seconds = format!("{:.4}", began.elapsed().as_secs_f64());
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static("uvicorn"));
    if let Ok(seconds) = HeaderValue::from_str(&seconds) {
        headers.insert("x-process-time", seconds);
    }
    drop(busy);
    response
}

/// HTTP Basic, if it is asked for; the answer names no scheme, as recorded.
pub(crate) async fn credentials(State(sim): State<Arc<Sim>>, request: Request, next: Next) -> Response {
    let Some(expected) = sim.config().auth else { return next.run(request).await };
    match basic(request.headers()) {
        Some(sent) if sent == expected => next.run(request).await,
        Some(_) => http_exception(StatusCode::UNAUTHORIZED, "Unauthorized"),
        None => http_exception(StatusCode::UNAUTHORIZED, "Not authenticated"),
    }
}

/// The rate limit of everything but renders, which are counted after their work.
pub(crate) async fn limit(State(sim): State<Arc<Sim>>, request: Request, next: Next) -> Response {
    let client = address(connection(&request).as_ref());
    let path = request.uri().path().to_owned();
    if sim.admit(client, &path, 1) { next.run(request).await } else { too_many(client, &path) }
}

/// Waits for a worker, which posts that wait for the lock may all have taken.
pub(crate) async fn worker(State(sim): State<Arc<Sim>>, request: Request, next: Next) -> Response {
    let permit = sim.workers.clone().acquire_owned().await;
    let response = next.run(request).await;
    drop(permit);
    response
}

pub(crate) fn too_many(client: IpAddr, path: &str) -> Response {
    http_exception(StatusCode::TOO_MANY_REQUESTS, &format!("{client}:{path}: rate limit exceeded"))
}

/// `user:password` of a Basic `Authorization` header.
fn basic(headers: &HeaderMap) -> Option<String> {
    let (scheme, encoded) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    String::from_utf8(decode_base64(encoded.trim())?).ok()
}
