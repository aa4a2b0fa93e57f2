//! Runs claimed jobs on SD.Next and publishes their progress.
//!
//! One loop per server ([`backend`]): it holds the server's lease, asks api for work, and runs one job at a time
//! ([`attempt`]). What a render is doing is worked out by the [`tracker`], what its answer is worth by the
//! [`verifier`]; both are pure, and both are held against what a real server said. A poller keeps nothing that it
//! cannot rebuild.

mod a1111;
mod attempt;
mod backend;
mod body;
mod config;
mod context;
pub mod dialect;
mod history;
mod inflight;
mod known;
mod lease;
mod memory;
mod meter;
mod moments;
mod outcome;
mod pace;
pub mod plan;
mod quarantine;
mod recover;
mod report;
pub mod sample;
mod sdnext;
mod stop;
mod store;
pub mod tracker;
pub mod verifier;
mod watch;
pub mod weights;

use std::sync::Arc;

use anyhow::Context as _;
use async_nats::Client;
use metrics_exporter_prometheus::PrometheusHandle;
use stepcast_shared::health::{self, ReadyCheck};
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{meter as shared_meter, nats, server, storage, subjects};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::backend::Backend;
pub use crate::config::{BackendSpec, Config, PollerConfig};
use crate::context::Shared;
pub use crate::sdnext::{Look, SdNext, Unusable};

/// Starts one loop per server as tasks of `supervisor`.
///
/// `client` must belong to a server that [`nats::prepare`] has prepared.
pub async fn build(
    config: &PollerConfig,
    client: Client,
    supervisor: &Supervisor,
) -> anyhow::Result<ReadyCheck> {
    config.check()?;
    meter::declare();
    let jetstream = async_nats::jetstream::new(client.clone());
    let leases = jetstream.get_key_value(subjects::LEASES_BUCKET).await.context("no bucket of leases")?;
    let inflight =
        jetstream.get_key_value(subjects::INFLIGHT_BUCKET).await.context("no bucket of renders")?;
    let ready = ReadyCheck::new();
    let tasks = TaskTracker::new();
    let shared = Shared {
        client,
        jetstream,
        leases,
        inflight,
        images: storage::open(&config.images_url)?,
        config: Arc::new(config.clone()),
        poller: Uuid::now_v7().to_string(),
        stopping: supervisor.stopping().clone(),
        tasks: tasks.clone(),
        ready: ready.clone(),
    };
    for spec in &config.sdnext {
        let backend = Backend::new(shared.clone(), spec.clone())?;
        supervisor.spawn("backend", backend.run());
    }
    // Leases are given back after the loops have let go of them.
    let stopping = supervisor.stopping().clone();
    supervisor.spawn("leases", async move {
        stopping.cancelled().await;
        tasks.close();
        tasks.wait().await;
        Ok(())
    });
    Ok(ready)
}

/// Runs the poller alone, with health and metrics on a bound listener.
pub async fn start(
    config: Config,
    listener: TcpListener,
    metrics: PrometheusHandle,
    supervisor: &Supervisor,
) -> anyhow::Result<()> {
    let client = nats::connect("poller", &config.nats).await?;
    nats::prepare(&client).await.context("NATS is not ready for Stepcast")?;
    let ready = build(&config.poller, client, supervisor).await?;
    supervisor.spawn("metrics", shared_meter::upkeep(metrics.clone(), supervisor.stopping().clone()));
    let router = health::router(ReadyCheck::merge(&[ready]), Some(metrics)).fallback(server::not_found);
    let address = server::serve(router, listener, supervisor)?;
    tracing::info!(%address, "poller is running");
    Ok(())
}
