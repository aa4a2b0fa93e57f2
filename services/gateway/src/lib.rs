//! The gateway: maps WebSocket subscriptions onto NATS subjects, one per job, and fans out what arrives there.
//!
//! It keeps nothing that matters: a client that loses its gateway subscribes again at another one and takes a
//! snapshot. It never decodes a job's message; subject and header tell what it must know, and the payload is passed on
//! byte for byte. There is no JetStream consumer per client: live messages come over core subscriptions, and what they
//! might miss is read from the stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use axum::Router;
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::health::{self, ReadyCheck};
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{meter as shared_meter, nats, server, trace};
use tokio::net::TcpListener;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::fanout::FanOut;
use crate::feed::Feed;
use crate::gap::Gap;
use crate::hub::Hub;
use crate::places::Places;
use crate::reread::Reread;
use crate::snapshot::Reader;
use crate::topics::{Backends, Board, Statistics};

mod answers;
mod close;
mod config;
mod connection;
pub mod contract;
mod deliveries;
mod fanout;
mod feed;
mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod gap;
mod hub;
mod limits;
mod meter;
mod operations;
mod outbox;
mod pace;
mod places;
mod protocol;
mod replay;
mod reread;
mod session;
mod snapshot;
mod sse;
mod topics;
mod upgrade;
mod ws;

pub use config::{Config, GatewayConfig, Limits};

/// How often subscriptions that nobody needs are looked for.
const SWEEP: Duration = Duration::from_millis(500);
/// Longest wait for the feed before the first client is served.
const FIRST_CONNECTION: Duration = Duration::from_secs(5);
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
    board: Arc<Board>,
    stopping: CancellationToken,
    /// Upgraded sockets outlive the HTTP server, so they are counted here.
    connections: TaskTracker,
    places: Arc<Places>,
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
    nats::prepare_to_read(&client).await?;
    let (router, ready, drained) = assemble(&config.gateway, &config.nats, client, supervisor).await?;
    supervisor.spawn("metrics", shared_meter::upkeep(metrics.clone(), drained.clone()));
    let router =
        router.merge(health::router(ReadyCheck::merge(&[ready]), Some(metrics))).fallback(server::not_found);
    let address = server::serve_until(router, listener, supervisor, drained)?;
    info!(%address, "the gateway serves");
    Ok(())
}

/// Builds the gateway's routes and starts its tasks. Streams must exist already ([`nats::prepare`]).
/// Waits a few seconds for the gateway's own connection to NATS; without it clients are served once it is there.
pub async fn build(
    config: &GatewayConfig,
    nats: &NatsConfig,
    client: Client,
    supervisor: &Supervisor,
) -> anyhow::Result<(Router, ReadyCheck)> {
    assemble(config, nats, client, supervisor).await.map(|(router, ready, _)| (router, ready))
}

/// [`build`], with what tells that the last client has gone.
async fn assemble(
    config: &GatewayConfig,
    nats: &NatsConfig,
    client: Client,
    supervisor: &Supervisor,
) -> anyhow::Result<(Router, ReadyCheck, CancellationToken)> {
    config.check()?;
    meter::declare();
    let limits = config.limits.clone();
    let feed = Arc::new(Feed::default());
    let hub = Arc::new(Hub::new(Arc::clone(&feed), limits.linger));
    let reader = Arc::new(Reader::new(client.clone(), limits.request_timeout.min(SNAPSHOT_PATIENCE)));
    let ready = ReadyCheck::new();
    let reread = Reread {
        hub: Arc::clone(&hub),
        reader: Arc::clone(&reader),
        feed: Arc::clone(&feed),
        every: limits.reread,
    };
    let gap = Gap {
        hub: Arc::clone(&hub),
        reader: Arc::clone(&reader),
        feed: Arc::clone(&feed),
        ready: ready.clone(),
    };
    let fan_out = FanOut { nats: nats.clone(), feed: Arc::clone(&feed), hub: Arc::clone(&hub) };
    let board = Arc::new(Board::default());
    let statistics = Statistics {
        board: Arc::clone(&board),
        client: client.clone(),
        patience: limits.request_timeout.min(SNAPSHOT_PATIENCE),
    };
    let backends = Backends { board: Arc::clone(&board), client: client.clone() };
    let drained = CancellationToken::new();
    let places = Places::new(limits.max_connections, limits.max_connections_per_address);
    let gateway = Arc::new(Gateway {
        limits,
        allow_origins: config.origins.allow_origins.clone(),
        client,
        hub,
        reader,
        board,
        stopping: supervisor.stopping().clone(),
        connections: TaskTracker::new(),
        places: Arc::new(places),
    });
    // Clients are served to the last: what feeds them ends after they have gone.
    supervisor.spawn("gateway fan-out", fan_out.run(drained.clone()));
    feed.ready(FIRST_CONNECTION).await;
    supervisor.spawn("gateway reread", reread.run(drained.clone()));
    supervisor.spawn("gateway gap", gap.run(drained.clone()));
    supervisor.spawn("gateway statistics", statistics.run(drained.clone()));
    supervisor.spawn("gateway backends", backends.run(drained.clone()));
    supervisor.spawn("gateway connections", tend(Arc::clone(&gateway), ready.clone(), drained.clone()));
    let router = Router::new()
        .route("/ws/progress", get(upgrade::upgrade))
        .route("/sse/progress", get(sse::progress))
        .layer(axum::middleware::from_fn(trace::http::serve))
        .with_state(gateway);
    Ok((router, ready, drained))
}

/// Keeps subscriptions tidy while the process runs, and sees the connections off when it stops.
async fn tend(gateway: Arc<Gateway>, ready: ReadyCheck, drained: CancellationToken) -> anyhow::Result<()> {
    let _drained = drained.drop_guard();
    let mut tick = interval(SWEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = gateway.stopping.cancelled() => break,
            _ = tick.tick() => gateway.hub.sweep(Instant::now()),
        }
    }
    ready.set("gateway", Err("stopping".to_owned()));
    gateway.connections.close();
    // The goodbyes are spread over the first, and a client that is behind has as long as any write.
    let patience = gateway.limits.drain + gateway.limits.write_deadline;
    if timeout(patience, gateway.connections.wait()).await.is_err() {
        warn!(left = gateway.connections.len(), "some clients did not take their leave in time");
    }
    Ok(())
}
