//! Accepts jobs over HTTP, owns the database, and decides who runs what.
//!
//! A job's row and its first event are written in one transaction ([`accept`]); a sweep publishes what a crash left
//! behind ([`outbox`]); idle backends ask for work ([`dispatch`]); and rows follow the recorded events ([`projector`]).
//! Nothing here is held in memory that another replica could not do without.

mod accept;
mod backends;
mod cancel;
mod config;
pub mod contract;
mod db;
mod dispatch;
mod error;
mod fresh;
mod images;
mod kept;
mod meter;
mod outbox;
mod outlook;
mod progress;
mod projector;
mod request;
mod retention;
mod retry;
mod routes;
mod rpc;
mod settle;
mod state;
mod stats;
mod timeline;
mod view;
mod waiting;

use std::sync::Arc;

use anyhow::Context as _;
use async_nats::Client;
use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use stepcast_shared::health::{self, ReadyCheck};
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{meter as shared_meter, nats, server, storage};
use tokio::net::TcpListener;

pub use crate::config::{ApiConfig, Config, Limits, RetentionConfig};
use crate::db::Db;
pub use crate::db::inspect;
use crate::db::silence::Silence;
use crate::settle::Settler;
use crate::state::AppState;

/// Starts the api's tasks, and returns what it serves.
///
/// `client` must belong to a server that [`nats::prepare`] has prepared.
pub async fn build(
    config: &ApiConfig,
    client: Client,
    supervisor: &Supervisor,
) -> anyhow::Result<(Router, ReadyCheck)> {
    meter::declare();
    let db = Db::open(&config.database_url, supervisor).await?;
    let silence = Silence::new();
    let jetstream = async_nats::jetstream::new(client.clone());
    let ready = ReadyCheck::new();
    let publisher = outbox::Publisher::new(db.clone(), jetstream.clone(), supervisor.clone());
    let state = AppState {
        db: db.clone(),
        silence: silence.clone(),
        waiting: db::counts::Counter::default(),
        nats: client.clone(),
        images: storage::open(&config.images_url)?,
        publisher: publisher.clone(),
        progress: progress::ProgressMap::default(),
        backends: backends::Backends::default(),
        outlooks: outlook::Outlooks::default(),
        counts: stats::Counts::default(),
        limits: Arc::new(config.limits.clone()),
        jetstream: jetstream.clone(),
        stopping: supervisor.stopping().clone(),
        allow_origins: config.origins.allow_origins.clone().into(),
    };
    let stopping = supervisor.stopping();
    supervisor.spawn("outbox", publisher.clone().sweep());
    let settler = Settler {
        db: db.clone(),
        client: client.clone(),
        publisher,
        max_wait: config.limits.max_queue_time,
        sole_process: config.sole_process,
    };
    let sweeper =
        retention::Sweeper { db: db.clone(), images: state.images.clone(), config: config.retention.clone() };
    supervisor.spawn("retention", sweeper.run(stopping.clone()));
    supervisor.spawn("settler", settler.run(stopping.clone()));
    supervisor.spawn("projector", projector::run(db.clone(), client.clone(), jetstream, stopping.clone()));
    supervisor.spawn("progress", progress::follow(client.clone(), state.progress.clone(), stopping.clone()));
    supervisor.spawn("backends", backends::follow(client.clone(), state.backends.clone(), stopping.clone()));
    supervisor.spawn("gauges", meter::watch(state.clone(), stopping.clone()));
    supervisor.spawn("rpc", rpc::serve(state.clone(), supervisor.clone()));
    supervisor.spawn("health", watch_health(db, silence, client, ready.clone(), stopping.clone()));
    Ok((routes::router(state), ready))
}

/// Serves the api alone, on a bound listener.
pub async fn start(
    config: Config,
    listener: TcpListener,
    metrics: PrometheusHandle,
    supervisor: &Supervisor,
) -> anyhow::Result<()> {
    config.listen.check()?;
    let client = nats::connect("api", &config.nats).await?;
    nats::prepare(&client).await.context("NATS is not ready for Stepcast")?;
    let (router, ready) = build(&config.api, client, supervisor).await?;
    supervisor.spawn("metrics", shared_meter::upkeep(metrics.clone(), supervisor.stopping().clone()));
    let router =
        router.merge(health::router(ReadyCheck::merge(&[ready]), Some(metrics))).fallback(server::not_found);
    let address = server::serve(router, listener, supervisor)?;
    tracing::info!(%address, "api is listening");
    Ok(())
}

/// Says whether the database and NATS answer, until the process stops.
async fn watch_health(
    db: Db,
    mut silence: Silence,
    client: Client,
    ready: ReadyCheck,
    stopping: tokio_util::sync::CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        ready.set("database", silence.check(&db).await.map_err(|error| error.to_string()));
        let state = client.connection_state();
        let connected = state == async_nats::connection::State::Connected;
        ready.set("nats", if connected { Ok(()) } else { Err(state.to_string()) });
    }
}
