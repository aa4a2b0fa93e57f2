//! `GET /ws/progress`: who may connect, and the switch to WebSocket.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::HeaderValue;
use axum::http::header::{CONNECTION, ORIGIN, SEC_WEBSOCKET_VERSION, UPGRADE};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use stepcast_shared::origin;
use stepcast_shared::problem::Problem;
use stepcast_shared::trace::TraceContext;
use tokio::net::TcpStream;
use tracing::{debug, info, warn};

use crate::places::Place;
use crate::ws::handshake::{self, Unfit};
use crate::{Gateway, connection};

/// Turns a request into a connection, or says why not.
pub async fn upgrade(State(gateway): State<Arc<Gateway>>, mut request: Request) -> Response {
    let answer = match handshake::answer(request.method(), request.version(), request.headers()) {
        Ok(answer) => answer,
        Err(unfit) => return refuse(unfit),
    };
    let place = match admit(&gateway, &request) {
        Ok(place) => place,
        Err(problem) => return problem.into_response(),
    };
    let upgrading = hyper::upgrade::on(&mut request);
    let handshake = TraceContext::current().map(Box::new);
    let connections = gateway.connections.clone();
    connections.spawn(async move {
        match upgrading.await {
            Ok(upgraded) => serve(upgraded, place, handshake, gateway),
            Err(error) => debug!(%error, "the client left during the handshake"),
        }
    });
    answer
}

/// Whether whoever asks may have a connection, and one more is free.
pub fn admit(gateway: &Arc<Gateway>, request: &Request) -> Result<Place, Problem> {
    if gateway.stopping.is_cancelled() {
        return Err(Problem::new(503, "stopping", "The server restarts").retry_after(1));
    }
    let headers = request.headers();
    if !origin::is_allowed(headers, &gateway.allow_origins) {
        info!(origin = ?headers.get(ORIGIN), "refused a page of another origin");
        return Err(Problem::new(403, "origin-not-allowed", "This page may not connect")
            .detail("the page comes from another origin; its address can be allowed with --allow-origin"));
    }
    gateway.places.take(address(request, gateway.limits.trust_forwarded_for))
}

/// Where a request comes from; behind a proxy, what the proxy says of it.
fn address(request: &Request, trust_forwarded_for: bool) -> Option<IpAddr> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| peer.ip());
    if !trust_forwarded_for {
        return peer;
    }
    // The last entry is the proxy's own; those before it are what it was told.
    let forwarded = request.headers().get_all("x-forwarded-for").iter().next_back();
    let last = forwarded.and_then(|value| value.to_str().ok()?.rsplit(',').next()?.trim().parse().ok());
    last.or(peer)
}

/// Hands the bare socket to a task of its own, so that nothing of HTTP is kept.
fn serve(
    upgraded: hyper::upgrade::Upgraded,
    place: Place,
    handshake: Option<Box<TraceContext>>,
    gateway: Arc<Gateway>,
) {
    let Ok(parts) = downcast::<TokioIo<TcpStream>>(upgraded) else {
        warn!("a connection is not plain TCP and cannot be served");
        return;
    };
    let socket = parts.io.into_inner();
    if let Err(error) = socket.set_nodelay(true) {
        debug!(%error, "a socket stays slow");
    }
    let conversation = connection::begin(socket, &parts.read_buf, place, handshake, &gateway);
    gateway.connections.clone().spawn(connection::serve(conversation, gateway));
}

fn refuse(unfit: Unfit) -> Response {
    let malformed = match unfit {
        Unfit::NotAsked => {
            return other_protocol("connect with a WebSocket client; the HTTP API is under /generation");
        }
        Unfit::Version => {
            return other_protocol(
                "version 13 is spoken here, which the header Sec-WebSocket-Version must say once",
            );
        }
        Unfit::Key => "the header Sec-WebSocket-Key must come once and hold 16 bytes in base64",
        Unfit::Host => "the header Host must come once",
        Unfit::Body => "a request for a WebSocket has no body",
    };
    Problem::new(400, "invalid-handshake", "This is no WebSocket handshake").detail(malformed).into_response()
}

/// Tells a client that could have asked for it what is spoken here (RFC 6455 section 4.4, RFC 9110 section 7.8).
fn other_protocol(detail: &str) -> Response {
    let mut response =
        Problem::new(426, "websocket-only", "This address speaks WebSocket").detail(detail).into_response();
    let headers = response.headers_mut();
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}
