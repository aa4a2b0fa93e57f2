//! One trace for each job: from the submit, over every process that works on it, to the frame that reached a watcher.
//!
//! Where no endpoint is named nothing of this exists: [`is_on`] is false, no header is written, and the spans below are
//! disabled where they stand. Where one is, a `tracing` span goes out if it says its `otel.kind` or has a `trace_id`:
//! the first are for traces alone and stand at debug, the second name what log lines are about as well. Others, such as
//! those of libraries, stay where they are. `docs/adr/0010-one-trace-a-job.md` says how the spans hang together.

mod config;
pub mod export;
pub mod http;

use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{Status, TraceContextExt as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use serde::{Deserialize, Serialize};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

pub use self::config::{BadEndpoint, OtlpEndpoint, TraceConfig};

/// Header of W3C Trace Context that names the span that something was sent from.
pub const PARENT_HEADER: &str = "traceparent";
/// Header of W3C Trace Context with what other systems want passed on.
pub const STATE_HEADER: &str = "tracestate";
/// Longest state that is passed on, in bytes: what W3C asks of everybody.
const LONGEST_STATE: usize = 512;

static ON: AtomicBool = AtomicBool::new(false);

/// Whether traces are exported. A load of one byte.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Whether the current span belongs to a trace, sampled or not.
pub fn is_traced() -> bool {
    is_on() && Span::current().context().span().span_context().is_valid()
}

/// Where a trace goes on: what the two headers of W3C Trace Context say.
///
/// It waits in the database with its job, and travels in claims.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TraceContext {
    traceparent: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tracestate: Option<String>,
}

impl TraceContext {
    /// Of the current span; `None` outside of traces.
    pub fn current() -> Option<Self> {
        if is_on() { Self::of(&Span::current()) } else { None }
    }

    /// Of a span; `None` if it belongs to no trace.
    pub fn of(span: &Span) -> Option<Self> {
        if !is_on() {
            return None;
        }
        let mut carrier = Carrier::default();
        TraceContextPropagator::new().inject_context(&span.context(), &mut carrier);
        let tracestate = Some(carrier.state).filter(|state| (1..=LONGEST_STATE).contains(&state.len()));
        Some(Self { traceparent: carrier.parent, tracestate }).filter(|it| !it.traceparent.is_empty())
    }

    /// What headers say, read by `get`; `None` if that is nothing, cannot be understood, or nobody is interested.
    pub fn read<'a>(get: impl Fn(&'static str) -> Option<&'a str>) -> Option<Self> {
        if !is_on() {
            return None;
        }
        let tracestate = get(STATE_HEADER).filter(|state| (1..=LONGEST_STATE).contains(&state.len()));
        let context =
            Self { traceparent: get(PARENT_HEADER)?.to_owned(), tracestate: tracestate.map(str::to_owned) };
        context.remote().span().span_context().is_valid().then_some(context)
    }

    /// What a message says.
    pub fn of_message(headers: Option<&HeaderMap>) -> Option<Self> {
        let headers = headers.filter(|_| is_on())?;
        Self::read(|name| headers.get(name).map(async_nats::HeaderValue::as_str))
    }

    /// Writes the headers of a message.
    pub fn write(&self, headers: &mut HeaderMap) {
        headers.insert(PARENT_HEADER, self.traceparent.as_str());
        if let Some(state) = &self.tracestate {
            headers.insert(STATE_HEADER, state.as_str());
        }
    }

    /// As a column holds it.
    pub fn to_column(&self) -> String {
        serde_json::to_string(self).expect("two strings can be said in JSON")
    }

    /// What a column holds; `None` if that is nothing, or nothing that is understood.
    pub fn from_column(column: Option<&str>) -> Option<Self> {
        serde_json::from_str(column.filter(|_| is_on())?).ok()
    }

    fn remote(&self) -> Context {
        let carrier =
            Carrier { parent: self.traceparent.clone(), state: self.tracestate.clone().unwrap_or_default() };
        TraceContextPropagator::new().extract_with_context(&Context::new(), &carrier)
    }
}

/// What a span of ours can be told about its trace. On a disabled span none of it does anything.
pub trait SpanExt {
    /// The span goes on from there, whatever it was made in; from nowhere, it begins a trace.
    #[must_use]
    fn continues(self, from: Option<&TraceContext>) -> Self;
    /// The span has to do with that, without being part of it.
    #[must_use]
    fn linked(self, to: Option<&TraceContext>) -> Self;
    /// Writes the trace's id into the span's field `trace_id`, for the log lines within it.
    #[must_use]
    fn named(self) -> Self;
    /// An attribute that log lines need not repeat.
    fn tell(&self, name: &'static str, value: impl Into<opentelemetry::Value>);
    /// Something that happened within it.
    fn note(&self, what: &'static str, name: &'static str, value: impl Into<opentelemetry::Value>);
    /// It failed, and with what code. The code is one of few: what others say has no place in a trace.
    fn fail(&self, code: impl Into<String>);
}

impl SpanExt for Span {
    fn continues(self, from: Option<&TraceContext>) -> Self {
        if is_on() {
            let parent = from.map_or_else(Context::new, TraceContext::remote);
            // A disabled span has no parent either.
            let _ = self.set_parent(parent);
        }
        self
    }

    fn linked(self, to: Option<&TraceContext>) -> Self {
        if let Some(to) = to.filter(|_| is_on()) {
            self.add_link(to.remote().span().span_context().clone());
        }
        self
    }

    fn named(self) -> Self {
        if is_on() {
            let context = self.context();
            let id = context.span().span_context().trace_id();
            if id != opentelemetry::TraceId::INVALID {
                self.record("trace_id", tracing::field::display(id));
            }
        }
        self
    }

    fn tell(&self, name: &'static str, value: impl Into<opentelemetry::Value>) {
        if is_on() {
            self.set_attribute(name, value);
        }
    }

    fn note(&self, what: &'static str, name: &'static str, value: impl Into<opentelemetry::Value>) {
        if is_on() {
            self.add_event(what, vec![KeyValue::new(name, value)]);
        }
    }

    fn fail(&self, code: impl Into<String>) {
        if is_on() {
            let code = code.into();
            self.set_attribute("error.type", code.clone());
            self.set_status(Status::error(code));
        }
    }
}

/// Writes where the current span stands into the headers of a message.
pub fn inject(headers: &mut HeaderMap) {
    if let Some(context) = TraceContext::current() {
        context.write(headers);
    }
}

/// The two headers, as the library reads and writes them.
#[derive(Default)]
struct Carrier {
    parent: String,
    state: String,
}

impl Injector for Carrier {
    fn set(&mut self, key: &str, value: String) {
        match key {
            PARENT_HEADER => self.parent = value,
            STATE_HEADER => self.state = value,
            _ => {}
        }
    }
}

impl Extractor for Carrier {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            PARENT_HEADER => Some(&self.parent),
            STATE_HEADER => Some(&self.state),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT_HEADER, STATE_HEADER]
    }
}
