//! Events that were accepted and are not yet seen in the stream.

use bytes::Bytes;
use sqlx::{Any, AnyConnection, AnyPool, Row as _};
use stepcast_shared::events::LifecycleEvent;
use stepcast_shared::messages::EventSeq;
use stepcast_shared::trace::TraceContext;
use uuid::Uuid;

use super::{Dialect, sql};

/// How long whoever tries to publish a row keeps it from the others.
const TRY_LEASE_MS: i64 = 5_000;

#[derive(sqlx::FromRow)]
struct OutboxRow {
    id: String,
    job_id: String,
    owner: String,
    kind: String,
    attempt: i64,
    seq: i64,
    expected_last: i64,
    payload: String,
    trace: Option<String>,
}

/// A fresh id for a row, which is also the author of its event.
pub fn mint_author() -> String {
    Uuid::now_v7().to_string()
}

/// Writes an event whose author was made by [`mint_author`], held for its writer's first try.
pub async fn insert(
    connection: &mut AnyConnection,
    dialect: Dialect,
    event: &LifecycleEvent,
) -> sqlx::Result<()> {
    let payload = std::str::from_utf8(&event.payload).expect("an envelope is JSON");
    let now = dialect.now();
    sqlx::query(sql(format!(
        "INSERT INTO outbox (id, job_id, owner, kind, attempt, seq, expected_last, payload, due_at, tries, parked, \
         created_at, trace) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, {now} + {TRY_LEASE_MS}, 0, 0, {now}, $9)"
    )))
    .bind(&event.author)
    .bind(event.job_id.to_string())
    .bind(event.owner.as_str())
    .bind(event.kind.as_str())
    .bind(i64::from(event.seq.attempt))
    .bind(i64::from(event.seq.seq))
    .bind(i64::try_from(event.expected_last).unwrap_or(i64::MAX))
    .bind(payload)
    .bind(event.trace.as_ref().map(TraceContext::to_column))
    .execute(connection)
    .await?;
    Ok(())
}

/// Takes due rows, at most `limit`, oldest first, at most one of each job, and holds them for one try.
///
/// An event that was written before `queued` was recorded learns its predecessor's sequence here.
pub async fn take_due(
    connection: &mut AnyConnection,
    dialect: Dialect,
    limit: u32,
) -> sqlx::Result<Vec<LifecycleEvent>> {
    let (now, skip_locked) = (dialect.now(), dialect.skip_locked());
    let rows = sqlx::query_as::<Any, OutboxRow>(sql(format!(
        "SELECT id, job_id, owner, kind, attempt, seq, payload, trace, \
         CASE WHEN kind <> 'queued' AND expected_last = 0 \
              THEN COALESCE((SELECT j.event_seq FROM jobs j WHERE j.id = o.job_id), 0) \
              ELSE expected_last END AS expected_last FROM outbox o \
         WHERE parked = 0 AND due_at <= {now} \
         AND NOT EXISTS (SELECT 1 FROM outbox e WHERE e.job_id = o.job_id AND e.parked = 0 AND e.id < o.id) \
         ORDER BY id LIMIT {limit}{skip_locked}"
    )))
    .fetch_all(&mut *connection)
    .await?;
    for row in &rows {
        // Doubling from half a second to 32 s: an outage is outlasted without a storm at its end.
        sqlx::query(sql(format!(
            "UPDATE outbox SET tries = tries + 1, due_at = {now} + {TRY_LEASE_MS} + \
             CASE WHEN tries > 5 THEN 32000 ELSE 500 * (tries + 1) * (tries + 1) END WHERE id = $1"
        )))
        .bind(&row.id)
        .execute(&mut *connection)
        .await?;
    }
    Ok(rows.into_iter().filter_map(event).collect())
}

fn event(row: OutboxRow) -> Option<LifecycleEvent> {
    Some(LifecycleEvent {
        owner: row.owner.parse().ok()?,
        job_id: row.job_id.parse().ok()?,
        kind: row.kind.parse().ok()?,
        seq: EventSeq { attempt: u32::try_from(row.attempt).ok()?, seq: u32::try_from(row.seq).ok()? },
        trace: TraceContext::from_column(row.trace.as_deref()),
        payload: Bytes::from(row.payload),
        author: row.id,
        expected_last: u64::try_from(row.expected_last).ok()?,
    })
}

/// Removes events that are in the stream, or that the stream has overruled.
pub async fn remove(connection: &mut AnyConnection, authors: &[&str]) -> sqlx::Result<()> {
    if authors.is_empty() {
        return Ok(());
    }
    let places: Vec<String> = (1..=authors.len()).map(|place| format!("${place}")).collect();
    let statement = format!("DELETE FROM outbox WHERE id IN ({})", places.join(", "));
    let delete = authors.iter().fold(sqlx::query(sql(statement)), |query, author| query.bind(*author));
    delete.execute(connection).await?;
    Ok(())
}

/// Puts an event aside that can never be published, so that it blocks nobody.
pub async fn park(connection: &mut AnyConnection, author: &str) -> sqlx::Result<()> {
    sqlx::query("UPDATE outbox SET parked = 1 WHERE id = $1").bind(author).execute(connection).await?;
    Ok(())
}

/// Number of rows, and the age of the oldest in milliseconds.
pub async fn backlog(pool: &AnyPool, dialect: Dialect) -> sqlx::Result<(i64, i64)> {
    let row = sqlx::query(sql(format!(
        "SELECT COUNT(*) AS waiting, COALESCE({} - MIN(created_at), 0) AS age FROM outbox WHERE parked = 0",
        dialect.now()
    )))
    .fetch_one(pool)
    .await?;
    Ok((row.try_get("waiting")?, row.try_get("age")?))
}
