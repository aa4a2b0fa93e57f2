//! Moving a row along its recorded events.
//!
//! Idempotent, and indifferent to order: a row keeps the greatest `(attempt, seq)` it has seen and never leaves a
//! terminal state, so that replicas may apply the same events at the same time.

use sqlx::{Any, AnyConnection};
use stepcast_shared::ids::{BackendId, JobId};
use stepcast_shared::messages::{Complete, EventSeq, JobError, JobMessage, Moments, Retrying};

use super::{Dialect, sql};

/// A recorded event, as the projector read it.
#[derive(Debug)]
pub struct RecordedEvent<'a> {
    /// Stream sequence.
    pub sequence: u64,
    /// When the stream stored it; milliseconds since 1970.
    pub stored_at: i64,
    /// What it says.
    pub message: &'a JobMessage,
    /// The envelope, as stored.
    pub envelope: &'a str,
}

/// What is told of a row that moved.
#[derive(Debug, sqlx::FromRow)]
pub struct Moved {
    /// Which backends may take it.
    pub pool: String,
    /// As the column holds it.
    pub priority: i64,
    /// When it was accepted; milliseconds since 1970, like the next.
    pub created_at: i64,
    /// When its last attempt began.
    pub started_at: Option<i64>,
}

const IS_NEWS: &str = "id = $1 AND status IN ('pending', 'running') AND (attempt < $2 OR (attempt = $2 AND seq < $3) \
     OR event_seq IS NULL)";

/// Applies one event, and returns what is told of the row if it moved to another attempt or status.
pub async fn apply(
    connection: &mut AnyConnection,
    dialect: Dialect,
    event: &RecordedEvent<'_>,
) -> sqlx::Result<Option<Moved>> {
    let (job_id, seq) = (event.message.job_id(), event.message.seq());
    let set = match event.message {
        // Only recorded messages reach the projector.
        JobMessage::Progress(_) => return Ok(None),
        JobMessage::Queued(_) => {
            queued(connection, job_id, event.sequence).await?;
            return Ok(None);
        }
        JobMessage::Started(_) => {
            "status = 'running', started_at = $6, first_started_at = COALESCE(first_started_at, $6), backend = $7, \
             estimated_duration = $8, give_backs = 0"
                .to_owned()
        }
        JobMessage::Retrying(_) => format!(
            "status = 'pending', backend = $6, avoid = $6, claim_token = NULL, claim_backend = NULL, give_backs = 0, \
             not_before = {} + CAST($7 * 1000 AS BIGINT)",
            dialect.now()
        ),
        JobMessage::Complete(complete) => format!(
            "status = '{}', finished_at = $6, result = $7, claim_token = NULL, claim_backend = NULL, \
             started_at = COALESCE(started_at, $8), first_started_at = COALESCE(first_started_at, $8), \
             backend = COALESCE($9, backend), images = $10, error_code = $11",
            complete.status
        ),
    };
    let statement = format!(
        "UPDATE jobs SET attempt = $2, seq = $3, event_seq = $4, message = $5, {set} WHERE {IS_NEWS} \
         RETURNING pool, priority, created_at, started_at"
    );
    let query = sqlx::query_as::<Any, Moved>(sql(statement))
        .bind(job_id.to_string())
        .bind(i64::from(seq.attempt))
        .bind(i64::from(seq.seq))
        .bind(i64::try_from(event.sequence).unwrap_or(i64::MAX))
        .bind(event.envelope);
    let query = match event.message {
        JobMessage::Started(started) => {
            query.bind(event.stored_at).bind(started.backend.to_string()).bind(started.estimated_duration)
        }
        JobMessage::Retrying(retrying) => {
            query.bind(retrying.backend.to_string()).bind(retrying.next_attempt_in_seconds)
        }
        JobMessage::Complete(complete) => query
            .bind(event.stored_at)
            .bind(serde_json::to_string(complete).expect("a message holds only what JSON can say"))
            .bind(complete.total_duration.map(|seconds| event.stored_at - millis(seconds)))
            .bind(complete.backend.as_ref().map(ToString::to_string))
            .bind(i64::try_from(complete.images.len()).unwrap_or(i64::MAX))
            .bind(complete.error.as_ref().map(|error| error.code.as_str())),
        JobMessage::Progress(_) | JobMessage::Queued(_) => unreachable!("returned above"),
    };
    // Before the row moves: it still tells whether this attempt was ever started.
    if let Some(failure) = Failure::of(event.message) {
        note_failure(connection, job_id, seq, event.stored_at, &failure).await?;
    }
    query.fetch_optional(&mut *connection).await
}

#[expect(clippy::cast_possible_truncation, reason = "the cast saturates, and no render lasts that long")]
fn millis(seconds: f64) -> i64 {
    (seconds * 1000.0) as i64
}

async fn queued(connection: &mut AnyConnection, job_id: JobId, sequence: u64) -> sqlx::Result<()> {
    sqlx::query("UPDATE jobs SET event_seq = $2 WHERE id = $1 AND event_seq IS NULL")
        .bind(job_id.to_string())
        .bind(i64::try_from(sequence).unwrap_or(i64::MAX))
        .execute(connection)
        .await?;
    Ok(())
}

/// What ended an attempt, if that failed.
struct Failure<'a> {
    error: &'a JobError,
    backend: Option<&'a BackendId>,
    timeline: Option<&'a Moments>,
    retried: bool,
}

impl<'a> Failure<'a> {
    fn of(message: &'a JobMessage) -> Option<Self> {
        match message {
            JobMessage::Retrying(Retrying { error, backend, timeline, .. }) => {
                Some(Self { error, backend: Some(backend), timeline: timeline.as_ref(), retried: true })
            }
            JobMessage::Complete(Complete { error, backend, timeline, .. }) => Some(Self {
                error: error.as_ref()?,
                backend: backend.as_ref(),
                timeline: timeline.as_ref(),
                retried: false,
            }),
            JobMessage::Queued(_) | JobMessage::Started(_) | JobMessage::Progress(_) => None,
        }
    }
}

async fn note_failure(
    connection: &mut AnyConnection,
    job_id: JobId,
    seq: EventSeq,
    ended_at: i64,
    failure: &Failure<'_>,
) -> sqlx::Result<()> {
    let json = "a message holds only what JSON can say";
    sqlx::query(
        "INSERT INTO attempts (job_id, attempt, backend, ended_at, error, started_at, code, retried, timeline) \
         SELECT id, $2, $3, $4, $5, CASE WHEN attempt = $2 THEN started_at END, $6, $7, $8 FROM jobs WHERE id = $1 \
         ON CONFLICT (job_id, attempt) DO NOTHING",
    )
    .bind(job_id.to_string())
    .bind(i64::from(seq.attempt))
    .bind(failure.backend.map(ToString::to_string))
    .bind(ended_at)
    .bind(serde_json::to_string(failure.error).expect(json))
    .bind(failure.error.code.as_str())
    .bind(i64::from(failure.retried))
    .bind(failure.timeline.map(|timeline| serde_json::to_string(timeline).expect(json)))
    .execute(connection)
    .await?;
    Ok(())
}
