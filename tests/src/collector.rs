//! A collector of traces: takes OTLP over HTTP from real binaries, and draws what came as trees.

mod tree;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode as SpanStatus;
use prost::Message as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

pub use self::tree::draw;

/// A span, as it was exported.
#[derive(Clone, Debug)]
pub struct Span {
    pub name: String,
    pub service: String,
    pub kind: SpanKind,
    /// In hex.
    pub trace_id: String,
    /// In hex.
    pub id: String,
    /// In hex; empty if it begins a trace.
    pub parent: String,
    /// Nanoseconds since 1970.
    pub start: u64,
    pub attributes: BTreeMap<String, String>,
    /// Of the process: name, version, instance.
    pub resource: BTreeMap<String, String>,
    pub events: Vec<String>,
    /// Traces and spans that it points to.
    pub links: Vec<(String, String)>,
    pub is_error: bool,
}

/// A running collector.
pub struct Collector {
    address: String,
    spans: Arc<Mutex<Vec<Span>>>,
    _server: JoinSet<()>,
}

impl Collector {
    /// One on a free port.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let spans = Arc::new(Mutex::default());
        let router = Router::new().route("/v1/traces", post(take)).with_state(Arc::clone(&spans));
        let mut server = JoinSet::new();
        server.spawn(async move {
            axum::serve(listener, router).await.expect("a bound listener serves");
        });
        Ok(Self { address, spans, _server: server })
    }

    /// What a service is to be told.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        vec![("STEPCAST_OTLP_ENDPOINT", format!("http://{}", self.address))]
    }

    /// All that came so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("no code panics while it holds this lock").clone()
    }

    /// The spans of a trace.
    pub fn trace(&self, trace_id: &str) -> Vec<Span> {
        self.spans().into_iter().filter(|span| span.trace_id == trace_id).collect()
    }

    /// The spans of this name that speak of a job.
    pub fn of_job(&self, name: &str, job_id: &str) -> Vec<Span> {
        let of_job = |span: &Span| span.attributes.get("job_id").is_some_and(|id| id == job_id);
        self.spans().into_iter().filter(|span| span.name == name && of_job(span)).collect()
    }
}

async fn take(State(kept): State<Arc<Mutex<Vec<Span>>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    let mut kept = kept.lock().expect("no code panics while it holds this lock");
    for of_resource in request.resource_spans {
        let resource = texts(of_resource.resource.map(|resource| resource.attributes).unwrap_or_default());
        let service = resource["service.name"].clone();
        for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
            kept.push(Span {
                kind: span.kind(),
                is_error: span.status.as_ref().is_some_and(|status| status.code() == SpanStatus::Error),
                name: span.name,
                service: service.clone(),
                trace_id: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                start: span.start_time_unix_nano,
                attributes: texts(span.attributes),
                resource: resource.clone(),
                events: span.events.into_iter().map(|event| event.name).collect(),
                links: span.links.iter().map(|link| (hex(&link.trace_id), hex(&link.span_id))).collect(),
            });
        }
    }
    StatusCode::OK
}

fn texts(attributes: Vec<KeyValue>) -> BTreeMap<String, String> {
    attributes.into_iter().map(|KeyValue { key, value, .. }| (key, text(value))).collect()
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
