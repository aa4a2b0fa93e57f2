//! The three services of one process, on one NATS client.

use anyhow::Context as _;
use async_nats::Client;
use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::{ExposeSecret as _, SecretString};
use stepcast_api::ApiConfig;
use stepcast_gateway::GatewayConfig;
use stepcast_poller::{BackendSpec, PollerConfig};
use stepcast_shared::config::NatsConfig;
use stepcast_shared::health::{self, ReadyCheck};
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{meter, nats, server};
use url::Url;

use crate::sections::Sections;

/// What `up` decides for the services, and what they were told besides.
#[derive(Debug)]
pub struct Settings {
    /// Where rows are kept.
    pub database_url: SecretString,
    /// Where images are kept.
    pub images_url: Url,
    /// Where learnt timings are kept unless it was said.
    pub weights_dir: std::path::PathBuf,
    /// The backends.
    pub backends: Vec<BackendSpec>,
    /// Where NATS is.
    pub nats: NatsConfig,
    /// Whether the NATS server is ours alone.
    pub embedded_nats: bool,
    /// The rest.
    pub sections: Sections,
}

/// Starts the services' tasks, and returns what they serve together.
pub async fn build(
    settings: &Settings,
    client: &Client,
    metrics: PrometheusHandle,
    supervisor: &Supervisor,
) -> anyhow::Result<Router> {
    let sections = &settings.sections;
    let decided = [
        ("images-url", settings.images_url.to_string()),
        ("database-url", settings.database_url.expose_secret().to_owned()),
    ];
    let api = ApiConfig { sole_process: settings.embedded_nats, ..sections.section(&decided)? };
    let gateway: GatewayConfig = sections.section(&[])?;
    let poller: PollerConfig = sections.section(&decided)?;
    let poller = PollerConfig {
        sdnext: settings.backends.clone(),
        weights_dir: poller.weights_dir.or_else(|| Some(settings.weights_dir.clone())),
        sole_holder: settings.embedded_nats,
        ..poller
    };
    supervisor.spawn("metrics", meter::upkeep(metrics.clone(), supervisor.stopping().clone()));
    nats::prepare(client).await.context("NATS is not ready for Stepcast")?;
    let (api_routes, api_check) =
        stepcast_api::build(&api, client.clone(), supervisor).await.context("the api cannot start")?;
    let (gateway_routes, gateway_check) =
        stepcast_gateway::build(&gateway, &settings.nats, client.clone(), supervisor)
            .await
            .context("the gateway cannot start")?;
    let poller_check = stepcast_poller::build(&poller, client.clone(), supervisor)
        .await
        .context("the poller cannot start")?;
    let check = ReadyCheck::merge(&[api_check, gateway_check, poller_check]);
    Ok(api_routes
        .merge(gateway_routes)
        .merge(health::router(check, Some(metrics)))
        .fallback(server::not_found))
}
