//! Recording a job's lifecycle, with the event stream as the arbiter.
//!
//! Two processes may believe that they own the same attempt: a poller that was frozen past its lease and the one that
//! took over. Each publish names the sequence its author last knew of this job, so that only one of them is stored.
//! The message id alone would not do: both authors would send the same one, and the server acknowledges a duplicate
//! as if it had been stored. So each event also names its author, and a duplicate counts only if it is our own.

use async_nats::HeaderMap;
use async_nats::jetstream;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use bytes::Bytes;
use tracing::{Span, debug_span};

use crate::ids::{JobId, Owner};
use crate::messages::{Envelope, EventSeq, JobMessage};
use crate::nats;
use crate::subjects::{self, EVENTS_STREAM, Kind};
use crate::trace::{self, SpanExt as _, TraceContext};

/// Header that names the author of an event: a claim's token, or the outbox row it came from.
pub const AUTHOR_HEADER: &str = "Stepcast-Author";
/// Largest payload of an event, in bytes.
pub const MAX_EVENT_BYTES: usize = 256 * 1024;

/// A lifecycle event, ready to be recorded.
#[derive(Clone, Debug)]
pub struct LifecycleEvent {
    /// Whose job.
    pub owner: Owner,
    /// Which job.
    pub job_id: JobId,
    /// What happened.
    pub kind: Kind,
    /// Its place in the job's life.
    pub seq: EventSeq,
    /// The envelope, as clients will read it.
    pub payload: Bytes,
    /// Who says so.
    pub author: String,
    /// Stream sequence of the last event of this job that the author knows; 0 for none.
    pub expected_last: u64,
    /// Where the job's trace goes on.
    pub trace: Option<TraceContext>,
}

impl LifecycleEvent {
    /// Encodes a message, stamped now, as part of the trace at hand.
    pub fn new(owner: Owner, message: JobMessage, author: String, expected_last: u64) -> Self {
        let (job_id, kind, seq) = (message.job_id(), message.kind(), message.seq());
        let payload = Envelope::now(message).to_json().into();
        let trace = TraceContext::current();
        Self { owner, job_id, kind, seq, payload, author, expected_last, trace }
    }

    /// The span to record it in, however many tries that takes; its readers go on from there.
    pub fn publishing(&self) -> Span {
        let Self { owner, job_id, kind, seq, payload, .. } = self;
        let span = debug_span!(
            "publish",
            otel.kind = "producer",
            otel.name = format!("publish {kind}"),
            messaging.system = "nats",
            messaging.operation.name = "publish",
            messaging.operation.r#type = "send",
            messaging.destination.name = subjects::event(owner, *job_id, *kind),
            messaging.message.id = message_id(self),
            messaging.message.body.size = payload.len(),
            %job_id,
            attempt = seq.attempt,
        );
        span.continues(self.trace.as_ref())
    }
}

fn message_id(event: &LifecycleEvent) -> String {
    format!("{}:{}:{}", event.job_id, event.seq.attempt, event.kind)
}

/// An event of a job, as the stream holds it.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Stream sequence.
    pub sequence: u64,
    /// What happened.
    pub kind: Kind,
    /// Its place in the job's life.
    pub seq: EventSeq,
    /// Who said so.
    pub author: Option<String>,
    /// When it was stored; milliseconds since 1970.
    pub stored_at: i64,
    /// The envelope.
    pub payload: Bytes,
}

/// Why an event was not recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Something else has been recorded of this job since: stop, publish nothing more.
    #[error("another event of this job was recorded first")]
    Fenced(Option<StoredEvent>),
    /// Over the size that the bus carries; trying again is of no use.
    #[error("the event has {0} bytes, more than {MAX_EVENT_BYTES}")]
    TooLarge(usize),
    /// Whether it was stored is not known; trying again is safe.
    #[error("the event stream could not be reached")]
    Unavailable(#[source] async_nats::Error),
}

/// Records one event, and returns its stream sequence. To be called within [`LifecycleEvent::publishing`].
///
/// Safe to call again with the same event after [`RecordError::Unavailable`], even if the first call was stored
/// later. Cancel-safe in the same sense: a dropped call may or may not have been stored.
pub async fn record(context: &jetstream::Context, event: &LifecycleEvent) -> Result<u64, RecordError> {
    if event.payload.len() > MAX_EVENT_BYTES {
        return Err(RecordError::TooLarge(event.payload.len()));
    }
    match publish(context, event, event.expected_last).await {
        // The job's events have left the stream: by age, or with the broker's data. Then ours is the first again; the
        // stream still decides, since this one too is refused if it holds any.
        Err(RecordError::Fenced(None)) if event.expected_last > 0 => publish(context, event, 0).await,
        outcome => outcome,
    }
}

async fn publish(
    context: &jetstream::Context,
    event: &LifecycleEvent,
    expected_last: u64,
) -> Result<u64, RecordError> {
    let subject = subjects::event(&event.owner, event.job_id, event.kind);
    let publish =
        PublishMessage::build().headers(headers(event, expected_last)).payload(event.payload.clone());
    let ack = match context.send_publish(subject, publish).await {
        Ok(ack) => ack.await,
        Err(error) => Err(error),
    };
    match ack {
        Ok(ack) if !ack.duplicate => Ok(ack.sequence),
        // A duplicate may be another author's event of the same name, and a refusal may be our own earlier publish
        // whose acknowledgement was lost: the stored event tells.
        Ok(_) => settle(context, event).await,
        Err(error) if error.kind() == PublishErrorKind::WrongLastSequence => settle(context, event).await,
        Err(error) => Err(RecordError::Unavailable(error.into())),
    }
}

fn headers(event: &LifecycleEvent, expected_last: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let LifecycleEvent { owner, job_id, seq, .. } = event;
    headers.insert("Nats-Msg-Id", message_id(event).as_str());
    headers.insert("Nats-Expected-Last-Subject-Sequence", expected_last.to_string().as_str());
    headers.insert(
        "Nats-Expected-Last-Subject-Sequence-Subject",
        subjects::events_of_job(owner, *job_id).as_str(),
    );
    headers.insert(EventSeq::HEADER, seq.to_string().as_str());
    headers.insert(AUTHOR_HEADER, event.author.as_str());
    headers.insert("Content-Type", "application/json");
    trace::inject(&mut headers);
    headers
}

async fn settle(context: &jetstream::Context, event: &LifecycleEvent) -> Result<u64, RecordError> {
    let last = last_event(context, &event.owner, event.job_id).await?;
    match last {
        Some(last)
            if last.kind == event.kind
                && last.seq == event.seq
                && last.author.as_deref() == Some(event.author.as_str()) =>
        {
            Ok(last.sequence)
        }
        last => Err(RecordError::Fenced(last)),
    }
}

/// The last recorded event of a job, as the stream's leader knows it; `None` if the stream has none.
pub async fn last_event(
    context: &jetstream::Context,
    owner: &Owner,
    job_id: JobId,
) -> Result<Option<StoredEvent>, RecordError> {
    let subject = subjects::events_of_job(owner, job_id);
    let last = nats::last(context, EVENTS_STREAM, &subject).await;
    let last = last.map_err(|error| RecordError::Unavailable(error.into()))?;
    Ok(last.as_ref().and_then(StoredEvent::read))
}

impl StoredEvent {
    /// Reads an event from a stream's message; `None` if it is not one.
    pub fn read(message: &StreamMessage) -> Option<Self> {
        let subject = subjects::parse_job(&message.subject)?;
        let header = |name: &str| message.headers.get(name).map(|value| value.as_str().to_owned());
        Some(Self {
            sequence: message.sequence,
            kind: subject.kind,
            seq: header(EventSeq::HEADER)?.parse().ok()?,
            author: header(AUTHOR_HEADER),
            stored_at: i64::try_from(message.time.unix_timestamp_nanos() / 1_000_000).unwrap_or(0),
            payload: message.payload.clone(),
        })
    }
}
