//! Serving a router until the process stops.

use std::net::SocketAddr;

use anyhow::Context as _;
use axum::Router;
use axum::http::Uri;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::problem::Problem;
use crate::shutdown::Supervisor;

/// Serves `router` on `listener` as a task of `supervisor`, until it stops.
///
/// Requests in flight are finished; upgraded sockets are not waited for and must end themselves.
pub fn serve(router: Router, listener: TcpListener, supervisor: &Supervisor) -> anyhow::Result<SocketAddr> {
    serve_until(router, listener, supervisor, supervisor.stopping().clone())
}

/// Like [`serve`], but until `end`, which must come some time after the process begins to stop.
///
/// For a service that says goodbye for a while: probes and newcomers are told so rather than refused.
pub fn serve_until(
    router: Router,
    listener: TcpListener,
    supervisor: &Supervisor,
    end: CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let address = listener.local_addr().context("a bound listener has an address")?;
    supervisor.spawn("http", async move {
        axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(end.cancelled_owned())
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
