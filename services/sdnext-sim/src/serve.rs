//! Starting and stopping.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::connect_info::IntoMakeServiceWithConnectInfo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::clock::Pace;
use crate::config::Config;
use crate::connection::{Door, Peer};
use crate::handle::Handle;
use crate::routes;
use crate::sim::Sim;

/// What requests under way get to finish in when the server stops.
const GRACE: Duration = Duration::from_millis(250);
/// How long a starting server reads idle before it loads its model.
const IDLE_BEFORE_LOAD: Duration = Duration::from_millis(200);

/// A server that listens nowhere yet, and the way to look inside. Call it within a runtime.
pub fn build(config: Config) -> (Router, Handle) {
    let sim = Arc::new(Sim::new(config));
    (routes::router(&sim), Handle { sim })
}

/// Serves what [`build`] made until `shutdown` is cancelled or the server is killed.
///
/// Unlike a plain `axum::serve`, it knows each client's address, cuts connections on demand and closes idle ones.
/// Returns once every connection is closed. Not cancel-safe: a dropped call leaves connections open.
pub async fn serve(
    router: Router,
    handle: Handle,
    listener: TcpListener,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let sim = handle.sim;
    let address = listener.local_addr().context("cannot read the address that is listened on")?;
    info!(%address, "simulated server listens");
    if sim.lock().models.loaded.is_none() {
        let loading = sim.clone();
        sim.tasks.spawn(async move { loading.connections.run_until_cancelled(warm_up(&loading)).await });
    }
    let stop = {
        let killed = sim.killed.clone();
        async move {
            tokio::select! { () = shutdown.cancelled() => {}, () = killed.cancelled() => {} }
        }
    };
    let stopped = CancellationToken::new();
    let close = {
        let (sim, stopped) = (sim.clone(), stopped.clone());
        async move {
            stop.await;
            stopped.cancel();
            if !sim.killed.is_cancelled() {
                tokio::time::sleep(GRACE).await;
            }
            sim.connections.cancel();
        }
    };
    let service: IntoMakeServiceWithConnectInfo<Router, Peer> = router.into_make_service_with_connect_info();
    let door = Door { listener, sim: sim.clone() };
    let serving = axum::serve(door, service).with_graceful_shutdown(stopped.cancelled_owned());
    let (served, ()) = tokio::join!(serving, close);
    served.context("cannot serve")?;
    sim.tasks.close();
    sim.tasks.wait().await;
    info!("simulated server stopped");
    Ok(())
}

/// Builds a server and serves it on `listener` until `shutdown` is cancelled or the server is killed.
///
/// With a `start_up_time` the model is loaded first, in view of the clients; to refuse them before that, bind
/// `listener` late. Not cancel-safe, as [`serve`] is not.
pub async fn start(config: Config, listener: TcpListener, shutdown: CancellationToken) -> anyhow::Result<()> {
    let (router, handle) = build(config);
    serve(router, handle, listener, shutdown).await
}

/// Idle for a moment, then loading, then ready; jobs wait for the lock meanwhile.
async fn warm_up(sim: &Arc<Sim>) {
    let _turn = sim.turn.lock().await;
    let idle = sim.config().scaled(IDLE_BEFORE_LOAD);
    tokio::time::sleep(idle).await;
    let selected = {
        let mut inner = sim.lock();
        let first = inner.state.begin("Load model");
        inner.state.end(&first);
        inner.models.selected.clone()
    };
    sim.load(&selected, &mut Pace::new()).await;
}
