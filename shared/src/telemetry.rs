//! Logs and metrics, set up once per process.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use metrics_exporter_prometheus::PrometheusHandle;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::{LogFormat, TelemetryConfig};
use crate::meter;

/// Starts logs and metrics, and installs the process's TLS provider; call it first thing in `main`.
///
/// Errors if a filter cannot be read, or if it was called before.
pub fn init(config: &TelemetryConfig) -> anyhow::Result<PrometheusHandle> {
    // reqwest and async-nats come with different defaults; without one installed, the first TLS client panics.
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = EnvFilter::builder().parse(&config.log).context("the log filter cannot be read")?;
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            registry.with(fmt::layer().with_ansi(colours).with_writer(std::io::stderr)).try_init()
        }
        LogFormat::Json => registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init(),
    }
    .context("logging was set up before")?;
    meter::install()
}
