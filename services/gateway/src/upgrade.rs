//! `GET /ws/progress`: who may connect, and the switch to WebSocket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::http::HeaderMap;
use axum::http::header::ORIGIN;
use axum::response::{IntoResponse as _, Response};
use stepcast_shared::origin;
use stepcast_shared::problem::Problem;
use tracing::info;

use crate::{Gateway, connection};

/// Small buffers: the defaults cost 137 KB for each idle connection.
const BUFFER: usize = 4 * 1024;

/// Turns a request into a connection, or says why not.
pub async fn upgrade(
    State(gateway): State<Arc<Gateway>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Response {
    let Ok(upgrade) = upgrade else {
        return Problem::new(426, "websocket-only", "This address speaks WebSocket")
            .detail("connect with a WebSocket client; the HTTP API is under /generation")
            .into_response();
    };
    if gateway.stopping.is_cancelled() {
        return Problem::new(503, "stopping", "The server restarts").retry_after(1).into_response();
    }
    if !origin::is_allowed(&headers, &gateway.allow_origins) {
        info!(origin = ?headers.get(ORIGIN), "refused a page of another origin");
        return Problem::new(403, "origin-not-allowed", "This page may not connect")
            .detail("the page comes from another origin; its address can be allowed with --allow-origin")
            .into_response();
    }
    let Some(place) = Place::take(&gateway) else {
        return Problem::new(503, "too-many-connections", "Too many connections")
            .retry_after(5)
            .into_response();
    };
    let token = gateway.connections.token();
    upgrade
        .read_buffer_size(BUFFER)
        .write_buffer_size(BUFFER)
        .max_message_size(gateway.limits.max_frame_bytes)
        .max_frame_size(gateway.limits.max_frame_bytes)
        .on_upgrade(async move |socket| {
            connection::serve(socket, gateway).await;
            drop((place, token));
        })
}

/// One of the connections that may exist at once.
struct Place(Arc<Gateway>);

impl Place {
    fn take(gateway: &Arc<Gateway>) -> Option<Self> {
        let place = Self(Arc::clone(gateway));
        let before = gateway.open.fetch_add(1, Ordering::Relaxed);
        (before < gateway.limits.max_connections).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
