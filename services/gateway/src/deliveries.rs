//! Traces of what the fan-out loop hands on: one span for each recorded event that somebody is told live, from its
//! arrival until it has been written to every socket that takes it at once.
//!
//! Only used where traces are exported. Progress has none: it is told many times a second, and each replaces the last.

use stepcast_shared::ids::JobId;
use stepcast_shared::messages::EventSeq;
use stepcast_shared::subjects;
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tracing::{Span, debug_span};

use crate::frame::header;

/// The spans of what has been handed on and not been written yet.
#[derive(Debug, Default)]
pub struct Deliveries(Vec<Span>);

/// What was handed on, and to how many.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    pub subject: &'a [u8],
    pub headers: &'a [u8],
    pub job_id: JobId,
    pub seq: EventSeq,
    pub receivers: usize,
}

impl Deliveries {
    /// Takes note of a delivery. Without the publisher's word of a trace there is nothing to be part of.
    #[cold]
    pub fn note(&mut self, delivery: &Delivery<'_>) {
        let Delivery { subject, headers, job_id, seq, receivers } = *delivery;
        let Some(published) = TraceContext::read(|name| header(headers, name)) else { return };
        let Ok(subject) = std::str::from_utf8(subject) else { return };
        let Some(kind) = subjects::parse_job(subject).map(|subject| subject.kind) else { return };
        let span = debug_span!(
            "deliver",
            otel.kind = "consumer",
            otel.name = format!("deliver {kind}"),
            messaging.system = "nats",
            messaging.operation.name = "deliver",
            messaging.operation.r#type = "process",
            messaging.destination.name = subject,
            %job_id,
            attempt = seq.attempt,
            receivers,
        );
        self.0.push(span.continues(Some(&published)));
    }

    /// All that was handed on has been written, as far as the sockets take it.
    pub fn written(&mut self) {
        self.0.clear();
    }
}
