//! Logs, metrics and traces, set up once per process.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use metrics_exporter_prometheus::PrometheusHandle;
use tracing::Subscriber;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{LogFormat, TelemetryConfig};
use crate::meter;
use crate::trace::export::Exporting;

/// What a process says of itself; to be held until its end, when the last traces are sent.
#[derive(Debug)]
pub struct Telemetry {
    /// Its metrics.
    pub metrics: PrometheusHandle,
    _traces: Option<Exporting>,
}

/// Starts logs, metrics and, where an endpoint is named, traces, and installs the process's TLS provider; call it first
/// thing in `main`. `service` is the process's name in traces.
///
/// Errors if a filter cannot be read, or if it was called before.
pub fn init(service: &'static str, config: &TelemetryConfig) -> anyhow::Result<Telemetry> {
    // reqwest and async-nats come with different defaults; without one installed, the first TLS client panics.
    // An error only says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let filter = EnvFilter::builder().parse(&config.log).context("the log filter cannot be read")?;
    let endpoint = config.trace.endpoint();
    let ratio = config.trace.trace_sample_ratio;
    let traces = endpoint.map(|endpoint| Exporting::start(service, endpoint, ratio)).transpose()?;
    let registry = tracing_subscriber::registry();
    let started = match &traces {
        // A filter of everything costs less than one of a layer.
        None => registry.with(filter).with(lines(config.log_format)).try_init(),
        // What is traced does not depend on what is logged.
        Some(traces) => {
            registry.with(lines(config.log_format).with_filter(filter)).with(traces.layer()).try_init()
        }
    };
    started.context("logging was set up before")?;
    Ok(Telemetry { metrics: meter::install()?, _traces: traces })
}

fn lines<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let layer = fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().boxed(),
    }
}
