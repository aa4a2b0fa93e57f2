//! The gateway: maps WebSocket subscriptions onto NATS subjects, one per job, and fans out what arrives there.
//!
//! It keeps nothing that matters: a client that loses its gateway subscribes again at another one and takes a
//! snapshot. It never decodes a job's message; subject and header tell what it must know, and the payload is passed on
//! byte for byte. There is no JetStream consumer per client: live messages come over core subscriptions, and what they
//! might miss is read from the stream.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use async_nats::Client;
use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use stepcast_shared::health::{self, ReadyCheck};
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{nats, server};
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::hub::Hub;
use crate::reread::Reread;
use crate::snapshot::Reader;

mod answers;
mod close;
mod config;
mod connection;
mod frame;
mod hub;
mod limits;
mod operations;
mod outbox;
mod protocol;
mod reread;
mod session;
mod snapshot;
mod upgrade;

pub use config::{Config, GatewayConfig, Limits};

/// How often subscriptions that nobody needs are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// Longest wait of a snapshot for api. The stream's answer is sent without it.
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(3);

/// What all connections share.
#[derive(Debug)]
struct Gateway {
    limits: Limits,
    allow_origins: Vec<String>,
    client: Client,
    hub: Arc<Hub>,
    reader: Arc<Reader>,
    stopping: CancellationToken,
    /// Upgraded sockets outlive the HTTP server, so they are counted here.
    connections: TaskTracker,
    open: AtomicUsize,
}

/// Connects to NATS, prepares it, and serves the gateway alone on `listener`.
pub async fn start(
    config: Config,
    listener: TcpListener,
    metrics: PrometheusHandle,
    supervisor: &Supervisor,
) -> anyhow::Result<()> {
    config.listen.check()?;
    let client = nats::connect("gateway", &config.nats).await?;
    nats::prepare(&client).await?;
    let (router, ready) = build(&config.gateway, client, supervisor).await?;
    let router =
        router.merge(health::router(ReadyCheck::merge(&[ready]), Some(metrics))).fallback(server::not_found);
    let address = server::serve(router, listener, supervisor)?;
    info!(%address, "the gateway serves");
    Ok(())
}

/// Builds the gateway's routes and starts its tasks. Streams must exist already ([`nats::prepare`]).
///
/// Nothing here waits yet; it is async like its siblings of the other services.
#[expect(clippy::unused_async, reason = "all services are built alike")]
pub async fn build(
    config: &GatewayConfig,
    client: Client,
    supervisor: &Supervisor,
) -> anyhow::Result<(Router, ReadyCheck)> {
    config.check()?;
    let limits = config.limits.clone();
    let hub = Arc::new(Hub::new(client.clone(), limits.linger));
    let reader = Arc::new(Reader::new(client.clone(), limits.request_timeout.min(SNAPSHOT_PATIENCE)));
    let ready = ReadyCheck::new();
    let reread = Reread {
        hub: Arc::clone(&hub),
        reader: Arc::clone(&reader),
        client: client.clone(),
        ready: ready.clone(),
        every: limits.reread,
    };
    let gateway = Arc::new(Gateway {
        limits,
        allow_origins: config.origins.allow_origins.clone(),
        client,
        hub,
        reader,
        stopping: supervisor.stopping().clone(),
        connections: TaskTracker::new(),
        open: AtomicUsize::new(0),
    });
    supervisor.spawn("gateway reread", reread.run(supervisor.stopping().clone()));
    supervisor.spawn("gateway connections", tend(Arc::clone(&gateway)));
    let router = Router::new().route("/ws/progress", get(upgrade::upgrade)).with_state(gateway);
    Ok((router, ready))
}

/// Keeps subscriptions tidy while the process runs, and sees the connections off when it stops.
async fn tend(gateway: Arc<Gateway>) -> anyhow::Result<()> {
    let mut tick = interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = gateway.stopping.cancelled() => break,
            _ = tick.tick() => gateway.hub.sweep(Instant::now()).await,
        }
    }
    gateway.connections.close();
    if timeout(gateway.limits.drain, gateway.connections.wait()).await.is_err() {
        warn!(left = gateway.connections.len(), "some clients did not take their leave in time");
    }
    gateway.hub.stop().await;
    Ok(())
}
