//! Sending spans to a collector, by OTLP over HTTP.
//!
//! A thread of its own sends them in batches from a queue with a bound: what finds no room there is dropped, and nobody
//! who makes a span ever waits. A collector that is away is told of once, and once more when it is back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, SpanData, Tracer};
use tracing::{Level, Metadata, Subscriber, info, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::registry::LookupSpan;
use url::Url;
use uuid::Uuid;

use super::ON;

/// Longest time that one batch may take, retries included.
const SENT_WITHIN: Duration = Duration::from_secs(5);
/// Longest time that the end of a process waits for the last batches.
const FLUSHED_WITHIN: Duration = Duration::from_secs(3);

/// Exports spans until it is dropped, which sends what is left and takes at most some seconds.
#[must_use = "what is not sent yet is lost when the process ends without dropping this"]
#[derive(Debug)]
pub struct Exporting {
    provider: SdkTracerProvider,
}

impl Exporting {
    /// Exports to a collector at `endpoint`, as `service`: of the traces that begin here the share `ratio`, of those
    /// that come from elsewhere what was decided there.
    pub fn start(service: &'static str, endpoint: &Url, ratio: f64) -> anyhow::Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client()?)
            .with_endpoint(traces_of(endpoint))
            .with_timeout(SENT_WITHIN)
            .build()
            .context("traces cannot be exported")?;
        let instance = Uuid::now_v7().to_string();
        let resource = Resource::builder().with_service_name(service).with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
        ]);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(Telling { exporter, is_away: AtomicBool::new(false) })
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(resource.build())
            .build();
        ON.store(true, Ordering::Relaxed);
        Ok(Self { provider })
    }

    /// What turns spans of `tracing` into ours.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let tracer: Tracer = self.provider.tracer("stepcast");
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_level(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            .with_error_events_to_status(false);
        layer.with_filter(filter_fn(goes_out).with_max_level_hint(LevelFilter::DEBUG))
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        ON.store(false, Ordering::Relaxed);
        // Whoever is away was told of.
        let _ = self.provider.shutdown_with_timeout(FLUSHED_WITHIN);
    }
}

/// Spans that say so, and what is logged of ours within them.
fn goes_out(metadata: &Metadata<'_>) -> bool {
    if metadata.is_span() {
        let fields = metadata.fields();
        return fields.field("otel.kind").is_some() || fields.field("trace_id").is_some();
    }
    *metadata.level() <= Level::INFO && metadata.target().starts_with("stepcast")
}

/// The client is made outside of the runtime, which it must not block.
fn client() -> anyhow::Result<reqwest::blocking::Client> {
    let build = || reqwest::blocking::Client::builder().timeout(SENT_WITHIN).build();
    let built = std::thread::spawn(build).join().ok().context("the client for traces panicked")?;
    built.context("the client for traces cannot be made")
}

/// The address for traces, of an endpoint that is named as OpenTelemetry names them: without the path of a signal.
fn traces_of(endpoint: &Url) -> String {
    let base = endpoint.as_str().trim_end_matches('/');
    if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") }
}

/// An exporter that tells when it begins to fail, and when it works again.
#[derive(Debug)]
struct Telling {
    exporter: SpanExporter,
    is_away: AtomicBool,
}

impl opentelemetry_sdk::trace::SpanExporter for Telling {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len() as u64;
        let sent = self.exporter.export(batch).await;
        let was_away = self.is_away.swap(sent.is_err(), Ordering::Relaxed);
        match &sent {
            Ok(()) => {
                metrics::counter!("stepcast_trace_spans_exported_total").increment(spans);
                if was_away {
                    info!("traces are exported again");
                }
            }
            Err(error) => {
                metrics::counter!("stepcast_trace_spans_lost_total").increment(spans);
                if !was_away {
                    warn!(error = %error, "traces are not exported, and are dropped until the collector answers");
                }
            }
        }
        sent
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_named_with_or_without_the_path_of_traces() {
        for named in ["http://collector:4318", "http://collector:4318/", "http://collector:4318/v1/traces"] {
            assert_eq!(traces_of(&named.parse().unwrap()), "http://collector:4318/v1/traces");
        }
        assert_eq!(traces_of(&"https://a.example/otlp".parse().unwrap()), "https://a.example/otlp/v1/traces");
    }
}
