//! The three services of one process, on one NATS client.

use anyhow::Context as _;
use async_nats::Client;
use axum::Router;
use clap::Args;
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::SecretString;
use stepcast_api::ApiConfig;
use stepcast_gateway::GatewayConfig;
use stepcast_poller::{BackendSpec, PollerConfig};
use stepcast_shared::config::{self, NatsConfig};
use stepcast_shared::health::{self, ReadyCheck};
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{nats, server};
use url::Url;

/// What `up` decides for the services; the rest they read from their own variables.
#[derive(Debug)]
pub struct Settings {
    /// Where rows are kept.
    pub database_url: SecretString,
    /// Where images are kept.
    pub images_url: Url,
    /// Where learnt timings are kept.
    pub weights_dir: std::path::PathBuf,
    /// The backends.
    pub backends: Vec<BackendSpec>,
    /// Where NATS is.
    pub nats: NatsConfig,
    /// Whether the NATS server is ours alone.
    pub embedded_nats: bool,
}

/// Starts the services' tasks, and returns what they serve together.
pub async fn build(
    settings: &Settings,
    client: &Client,
    metrics: PrometheusHandle,
    supervisor: &Supervisor,
) -> anyhow::Result<Router> {
    let api = ApiConfig {
        database_url: settings.database_url.clone(),
        images_url: settings.images_url.clone(),
        origins: section("api", &[])?,
        limits: section("api", &[])?,
        retention: section("api", &[])?,
        sole_process: settings.embedded_nats,
    };
    let gateway: GatewayConfig = section("gateway", &[])?;
    let images_url = format!("--images-url={}", settings.images_url);
    let poller = PollerConfig {
        sdnext: settings.backends.clone(),
        weights_dir: Some(settings.weights_dir.clone()),
        sole_holder: settings.embedded_nats,
        ..section("poller", &[&images_url])?
    };
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

/// A service's section with its defaults and variables, as if the service ran by itself with these arguments.
fn section<T: Args>(name: &'static str, arguments: &[&str]) -> anyhow::Result<T> {
    let command = T::augment_args(clap::Command::new(name));
    let matches = command
        .try_get_matches_from(std::iter::once(&name).chain(arguments))
        .map_err(config::without_secrets)
        .with_context(|| format!("the settings of the {name} cannot be understood"))?;
    T::from_arg_matches(&matches).with_context(|| format!("the settings of the {name} cannot be understood"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_services_have_all_the_settings_they_need() {
        section::<stepcast_api::Limits>("api", &[]).unwrap();
        section::<GatewayConfig>("gateway", &[]).unwrap();
        let poller: PollerConfig = section("poller", &["--images-url=file:///x/"]).unwrap();
        assert_eq!(poller.images_url.as_str(), "file:///x/");
    }
}
