//! Serving a router until the process stops.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::Router;
use axum::http::Uri;
use tokio::net::TcpListener;

use crate::problem::Problem;
use crate::shutdown::Supervisor;

/// Serves `router` on `listener` as a task of `supervisor`, until it stops.
///
/// Requests in flight are finished; upgraded sockets are not waited for and must end themselves.
pub fn serve(router: Router, listener: TcpListener, supervisor: &Supervisor) -> anyhow::Result<SocketAddr> {
    let address = listener.local_addr().context("a bound listener has an address")?;
    let stopping = supervisor.stopping().clone();
    supervisor.spawn("http", async move {
        axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(stopping.cancelled_owned())
            .await
            .context("the HTTP server failed")
    });
    Ok(address)
}

/// What any process answers to a path that nothing serves.
#[expect(clippy::unused_async, reason = "handlers are async")]
pub async fn not_found(uri: Uri) -> Problem {
    Problem::new(404, "not-found", "Not found").detail(format!("Nothing is served at {}.", uri.path()))
}
