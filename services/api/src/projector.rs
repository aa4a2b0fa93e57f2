//! Moving rows along the recorded events: one durable consumer, shared by all replicas.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, AckKind, Message};
use async_nats::{Client, HeaderValue};
use futures_util::StreamExt as _;
use stepcast_shared::events::AUTHOR_HEADER;
use stepcast_shared::messages::{Envelope, JobMessage};
use stepcast_shared::subjects;
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug_span, error, warn};

use crate::db::projection::{self, Moved, RecordedEvent};
use crate::db::silence::in_time;
use crate::db::{Db, outbox};
use crate::meter;

/// Name of the durable consumer.
pub const CONSUMER: &str = "api-projector";
/// Events applied in one transaction.
const BATCH: usize = 128;
/// Pause before an event that could not be applied comes again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How long an event that a stopped replica had fetched stays with it.
const ACK_WAIT: Duration = Duration::from_secs(10);
/// Deliveries after which an event that cannot be read is put aside. Another replica may be newer and read it.
const MAX_DELIVERIES: i64 = 5;

/// Applies events until the process stops.
pub async fn run(
    db: Db,
    client: Client,
    context: jetstream::Context,
    stopping: CancellationToken,
) -> anyhow::Result<()> {
    let projector = Projector { db, client, context };
    loop {
        match projector.consume(&stopping).await {
            Ok(()) => return Ok(()),
            // The broker may be away for minutes; what was recorded meanwhile is still there afterwards.
            Err(error) => warn!(error = format!("{error:#}"), "projector interrupted"),
        }
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            () = tokio::time::sleep(AGAIN_AFTER) => {}
        }
    }
}

struct Projector {
    db: Db,
    client: Client,
    context: jetstream::Context,
}

/// An event that could be read.
struct Readable {
    message: Message,
    sequence: u64,
    stored_at: i64,
    decoded: JobMessage,
    envelope: String,
    /// Of its application to the row, within the trace of its job.
    span: Span,
}

impl Projector {
    async fn consume(&self, stopping: &CancellationToken) -> anyhow::Result<()> {
        let stream = self.context.get_stream_no_info(subjects::EVENTS_STREAM).await?;
        let config = pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            description: Some("Moves the rows of jobs along their events".to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            max_ack_pending: 4 * i64::try_from(BATCH).expect("a small number"),
            ..pull::Config::default()
        };
        let consumer =
            stream.create_consumer(config).await.context("the projector's consumer cannot be made")?;
        let messages = consumer.messages().await.context("the event stream cannot be read")?;
        let mut batches = messages.ready_chunks(BATCH);
        loop {
            let batch = tokio::select! {
                () = stopping.cancelled() => return Ok(()),
                batch = batches.next() => batch.context("the event stream ended")?,
            };
            let mut events = Vec::with_capacity(batch.len());
            let mut broken = None;
            for message in batch {
                match message.map(read) {
                    Ok(Ok(event)) => events.push(event),
                    Ok(Err(message)) => self.put_aside(&message).await?,
                    Err(error) => broken = Some(error),
                }
            }
            // What was read is applied before the break is looked at: it would come again only after the ack wait.
            self.apply(events).await?;
            if let Some(error) = broken {
                return Err(error).context("the event stream broke off");
            }
        }
    }

    /// Applies a batch and acknowledges it, or asks for all of it again.
    async fn apply(&self, events: Vec<Readable>) -> anyhow::Result<()> {
        let applied = in_time(self.apply_all(&events)).await;
        if let Ok(moves) = &applied {
            let now = chrono::Utc::now().timestamp_millis();
            for (event, moved) in events.iter().zip(moves) {
                metrics::histogram!("stepcast_projection_seconds")
                    .record((now - event.stored_at).max(0) as f64 / 1000.0);
                if let Some(moved) = moved {
                    meter::moved(moved, &event.decoded, event.stored_at);
                }
            }
        }
        for event in &events {
            if applied.is_err() {
                event.span.fail("database");
            }
            let kind = if applied.is_ok() { AckKind::Ack } else { AckKind::Nak(Some(AGAIN_AFTER)) };
            event.message.ack_with(kind).await.map_err(anyhow::Error::from_boxed)?;
        }
        if let Err(cause) = applied {
            error!(error = %cause, "events not applied");
            return Ok(());
        }
        for event in &events {
            // One for each job: every wake reaches one idle backend. Best effort, as those ask by themselves too.
            if let JobMessage::Queued(queued) = &event.decoded {
                let _ = self.client.publish(subjects::wake(&queued.pool), "".into()).await;
            }
        }
        metrics::counter!("stepcast_events_projected_total").increment(events.len() as u64);
        Ok(())
    }

    /// Returns of each event what is told of its row, if that moved.
    async fn apply_all(&self, events: &[Readable]) -> sqlx::Result<Vec<Option<Moved>>> {
        let mut transaction = self.db.begin().await?;
        let mut authors = Vec::with_capacity(events.len());
        let mut moves = Vec::with_capacity(events.len());
        for event in events {
            let recorded = RecordedEvent {
                sequence: event.sequence,
                stored_at: event.stored_at,
                message: &event.decoded,
                envelope: &event.envelope,
            };
            moves.push(projection::apply(&mut transaction, self.db.dialect, &recorded).await?);
            // A start is recorded by a poller, never through the outbox.
            if !matches!(event.decoded, JobMessage::Started(_)) {
                let headers = event.message.headers.as_ref();
                authors
                    .extend(headers.and_then(|headers| headers.get(AUTHOR_HEADER)).map(HeaderValue::as_str));
            }
        }
        outbox::remove(&mut transaction, &authors).await?;
        transaction.commit().await?;
        Ok(moves)
    }

    async fn put_aside(&self, message: &Message) -> anyhow::Result<()> {
        let deliveries = message.info().map_or(MAX_DELIVERIES, |info| info.delivered);
        if deliveries < MAX_DELIVERIES {
            let again = AckKind::Nak(Some(AGAIN_AFTER));
            return message.ack_with(again).await.map_err(anyhow::Error::from_boxed);
        }
        metrics::counter!("stepcast_events_dead_total").increment(1);
        error!(subject = %message.subject, "event cannot be read; a copy is kept");
        self.context
            .publish(subjects::dead(&message.subject), message.payload.clone())
            .await?
            .await
            .context("the copy of an unreadable event was not stored")?;
        message.ack_with(AckKind::Term).await.map_err(anyhow::Error::from_boxed)
    }
}

fn read(message: Message) -> Result<Readable, Box<Message>> {
    let Some((sequence, stored_at)) = message.info().ok().map(|info| {
        (info.stream_sequence, i64::try_from(info.published.unix_timestamp_nanos() / 1_000_000).unwrap_or(0))
    }) else {
        return Err(Box::new(message));
    };
    let text = String::from_utf8(message.payload.to_vec());
    let Some(envelope) = text.ok() else { return Err(Box::new(message)) };
    match serde_json::from_str::<Envelope<JobMessage>>(&envelope) {
        Ok(Envelope { message: decoded, .. }) if agrees(&message, &decoded) => {
            let span = processing(&message, &decoded);
            Ok(Readable { message, sequence, stored_at, decoded, envelope, span })
        }
        _ => Err(Box::new(message)),
    }
}

/// A span for an event of a job that is traced.
fn processing(message: &Message, decoded: &JobMessage) -> Span {
    let Some(published) = TraceContext::of_message(message.headers.as_ref()) else { return Span::none() };
    let (kind, seq) = (decoded.kind(), decoded.seq());
    let span = debug_span!(
        "process",
        otel.kind = "consumer",
        otel.name = format!("process {kind}"),
        messaging.system = "nats",
        messaging.operation.name = "process",
        messaging.operation.r#type = "process",
        messaging.destination.name = %message.subject,
        messaging.consumer.group.name = CONSUMER,
        job_id = %decoded.job_id(),
        attempt = seq.attempt,
    );
    span.continues(Some(&published))
}

/// Whether the payload speaks of what the subject names.
fn agrees(message: &Message, decoded: &JobMessage) -> bool {
    subjects::parse_job(&message.subject)
        .is_some_and(|subject| subject.job_id == decoded.job_id() && subject.kind == decoded.kind())
}
