//! Who runs what: claims with leases, on the database's clock.

use sqlx::{Any, AnyConnection, Row as _};
use stepcast_shared::ids::{ClaimToken, JobId};
use stepcast_shared::rpc::{ClaimRequest, HeldClaim, RenewOutcome};

use super::{Dialect, sql};

/// How long a claim lasts unless renewed.
pub const LEASE_SECONDS: u64 = 45;

/// Claims given back or lapsed in a row, before a start, that cost one attempt.
pub const GIVE_BACKS_PER_ATTEMPT: i64 = 10;
/// Twice the age at which a lease of a backend ends by itself.
const EPOCH_MEMORY_MS: i64 = 60_000;
/// How long a job that failed on one backend is left to others.
const LEFT_TO_OTHERS_MS: i64 = 30_000;
/// How exactly it is known when a holder last asked.
const EPOCH_REFRESH_MS: i64 = 10_000;
const LEASE_MS: u64 = LEASE_SECONDS * 1000;

/// A job just claimed.
#[derive(Debug, sqlx::FromRow)]
pub struct ClaimedRow {
    pub id: String,
    pub owner: String,
    pub attempt: i64,
    pub event_seq: i64,
    pub request: String,
    pub params: String,
    pub priority: i64,
    /// 1 if it needs no other checkpoint than is loaded, or has waited too long for that to matter.
    pub fits: i64,
    /// Milliseconds left; null without a deadline.
    pub deadline_in: Option<i64>,
    pub trace: Option<String>,
}

/// Whether this holder of a backend is the newest; remembers it if so.
///
/// A holder that has not asked for [`EPOCH_MEMORY_MS`] has lost its lease in any case. Forgetting it lets a backend go
/// on where the leases themselves were lost with the broker's data and count from 1 again.
pub async fn admit_epoch(
    connection: &mut AnyConnection,
    dialect: Dialect,
    request: &ClaimRequest,
) -> sqlx::Result<bool> {
    let now = dialect.now();
    let epoch = i64::try_from(request.epoch).unwrap_or(i64::MAX);
    // Every idle backend comes by once a second: reading costs nothing, a commit costs a write to the disk.
    let known = sqlx::query(sql(format!(
        "SELECT epoch, {now} - seen_at AS age FROM backend_epochs WHERE backend_id = $1"
    )))
    .bind(request.backend_id.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(known) = known {
        let (known, age): (i64, i64) = (known.try_get("epoch")?, known.try_get("age")?);
        if known > epoch && age < EPOCH_MEMORY_MS {
            return Ok(false);
        }
        if known == epoch && age < EPOCH_REFRESH_MS {
            return Ok(true);
        }
    }
    let done = sqlx::query(sql(format!(
        "INSERT INTO backend_epochs (backend_id, epoch, seen_at) VALUES ($1, $2, {now}) \
         ON CONFLICT (backend_id) DO UPDATE SET epoch = excluded.epoch, seen_at = excluded.seen_at \
         WHERE backend_epochs.epoch <= excluded.epoch OR backend_epochs.seen_at <= {now} - {EPOCH_MEMORY_MS}"
    )))
    .bind(request.backend_id.as_str())
    .bind(epoch)
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// What a choice takes into account beside the rows.
#[derive(Clone, Copy, Debug)]
pub struct Preferences {
    /// Whether another backend could take what failed on this one.
    pub others: bool,
    /// How long a job may be passed over for one whose checkpoint is loaded, in milliseconds.
    pub affinity_wait_ms: i64,
}

/// Chooses a waiting job for a backend and holds it under `token`; `None` if there is none.
///
/// High priority goes first, then what needs no other checkpoint unless something has waited too long, then age. A job
/// that failed here is left to others for a while, if there are any. One whose `queued` is not recorded yet is passed
/// over: its first event must be in the stream before a second can name it.
pub async fn choose(
    connection: &mut AnyConnection,
    dialect: Dialect,
    request: &ClaimRequest,
    preferences: Preferences,
    token: ClaimToken,
) -> sqlx::Result<Option<ClaimedRow>> {
    let now = dialect.now();
    let Preferences { others, affinity_wait_ms } = preferences;
    let pools: Vec<String> = (0..request.pools.len()).map(|index| format!("${}", index + 3)).collect();
    let avoiding = if others {
        format!("AND (avoid IS NULL OR avoid <> $1 OR not_before <= {now} - {LEFT_TO_OTHERS_MS}) ")
    } else {
        String::new()
    };
    let fits = format!("(model IS NULL OR model = $2 OR created_at <= {now} - {affinity_wait_ms})");
    // The index `jobs_queue` has this order, so that only the first rows of a long queue are read.
    let first = |further: &str| {
        format!(
            "SELECT id, owner, attempt, event_seq, request, params, priority, trace, \
             CASE WHEN {fits} THEN 1 ELSE 0 END AS fits, deadline_at - {now} AS deadline_in FROM jobs \
             WHERE status = 'pending' AND cancelling = 0 AND event_seq IS NOT NULL AND not_before <= {now} \
             AND (claim_token IS NULL OR lease_until <= {now}) \
             AND (deadline_at IS NULL OR deadline_at > {now}) {avoiding}\
             AND (wanted_backend IS NULL OR wanted_backend = $1) AND pool IN ({}) {further}\
             ORDER BY priority DESC, id LIMIT 1{}",
            pools.join(", "),
            dialect.skip_locked()
        )
    };
    let Some(mut row) = first_row(&mut *connection, first(""), request).await? else { return Ok(None) };
    if row.fits == 0 {
        let alike = format!("AND priority = {} AND {fits} ", row.priority);
        row = first_row(&mut *connection, first(&alike), request).await?.unwrap_or(row);
    }
    sqlx::query(sql(format!(
        "UPDATE jobs SET claim_token = $1, claim_backend = $2, lease_until = {now} + {LEASE_MS} WHERE id = $3"
    )))
    .bind(token.to_string())
    .bind(request.backend_id.as_str())
    .bind(&row.id)
    .execute(connection)
    .await?;
    Ok(Some(row))
}

async fn first_row(
    connection: &mut AnyConnection,
    statement: String,
    request: &ClaimRequest,
) -> sqlx::Result<Option<ClaimedRow>> {
    let mut query = sqlx::query_as::<Any, ClaimedRow>(sql(statement))
        .bind(request.backend_id.as_str())
        .bind(request.loaded_model.as_deref().unwrap_or_default());
    for pool in &request.pools {
        query = query.bind(pool.as_str());
    }
    query.fetch_optional(connection).await
}

/// Extends a claim, and says what has become of its job, and how many seconds ago its cancel was asked for.
pub async fn renew(
    connection: &mut AnyConnection,
    dialect: Dialect,
    claim: HeldClaim,
) -> sqlx::Result<(RenewOutcome, Option<f64>)> {
    let now = dialect.now();
    let row = sqlx::query(sql(format!(
        "UPDATE jobs SET lease_until = {now} + {LEASE_MS} \
         WHERE id = $1 AND claim_token = $2 AND status IN ('pending', 'running') \
         RETURNING cancelling, {now} - cancel_asked_at AS asked_ago"
    )))
    .bind(claim.job_id.to_string())
    .bind(claim.token.to_string())
    .fetch_optional(connection)
    .await?;
    let Some(row) = row else { return Ok((RenewOutcome::Lost, None)) };
    if row.try_get::<i64, _>("cancelling")? == 0 {
        return Ok((RenewOutcome::Held, None));
    }
    let asked_ago: Option<i64> = row.try_get("asked_ago")?;
    Ok((RenewOutcome::Cancel, asked_ago.map(|millis| millis as f64 / 1000.0)))
}

/// Takes a claim back that was not started; the job waits a second before the next.
pub async fn release(connection: &mut AnyConnection, dialect: Dialect, claim: HeldClaim) -> sqlx::Result<()> {
    sqlx::query(sql(format!(
        "UPDATE jobs SET claim_token = NULL, give_backs = give_backs + 1, not_before = {} + 1000 \
         WHERE id = $1 AND claim_token = $2 AND status = 'pending'",
        dialect.now()
    )))
    .bind(claim.job_id.to_string())
    .bind(claim.token.to_string())
    .execute(connection)
    .await?;
    Ok(())
}

/// A job that nobody but api can move on.
#[derive(Debug, sqlx::FromRow)]
pub struct UnsettledRow {
    pub id: String,
    pub owner: String,
    pub status: String,
    pub attempt: i64,
    pub max_attempts: i64,
    pub event_seq: i64,
    pub cancelling: i64,
    pub claim_backend: Option<String>,
    pub give_backs: i64,
    /// 1 if its lease has run out.
    pub lapsed: i64,
    /// 1 if its time is up.
    pub late: i64,
    pub trace: Option<String>,
}

/// Jobs whose lease has run out, and waiting ones that nobody holds and that are cancelled, late, or were given back
/// too often; without those that have an event of ours under way.
pub async fn unsettled(
    connection: &mut AnyConnection,
    dialect: Dialect,
    max_wait_ms: i64,
    limit: u32,
) -> sqlx::Result<Vec<UnsettledRow>> {
    let (now, skip_locked) = (dialect.now(), dialect.skip_locked());
    let late = format!("(deadline_at <= {now} OR created_at <= {now} - {max_wait_ms})");
    // A start may be recorded after its claim was cleared: then the job runs, and nobody holds it.
    let lapsed = format!("(lease_until <= {now} AND (claim_token IS NOT NULL OR status = 'running'))");
    sqlx::query_as::<Any, UnsettledRow>(sql(format!(
        "SELECT id, owner, status, attempt, max_attempts, event_seq, cancelling, trace, \
         COALESCE(claim_backend, backend) AS claim_backend, give_backs, \
         CASE WHEN {lapsed} THEN 1 ELSE 0 END AS lapsed, CASE WHEN {late} THEN 1 ELSE 0 END AS late \
         FROM jobs WHERE status IN ('pending', 'running') AND event_seq IS NOT NULL \
         AND ({lapsed} OR (claim_token IS NULL AND status = 'pending' \
              AND (cancelling = 1 OR give_backs >= {GIVE_BACKS_PER_ATTEMPT} OR {late}))) \
         AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.job_id = jobs.id) \
         ORDER BY id LIMIT {limit}{skip_locked}"
    )))
    .fetch_all(connection)
    .await
}

/// Ends the lease of every claim that was last renewed before a time, in milliseconds since 1970.
pub async fn end_before(connection: &mut AnyConnection, time: i64) -> sqlx::Result<()> {
    let lease_ms = i64::try_from(LEASE_MS).expect("a small number");
    sqlx::query(
        "UPDATE jobs SET lease_until = 0 \
         WHERE claim_token IS NOT NULL AND status IN ('pending', 'running') AND lease_until < $1",
    )
    .bind(time + lease_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// Frees a job that was claimed and never started.
pub async fn clear(connection: &mut AnyConnection, id: JobId) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE jobs SET claim_token = NULL, give_backs = give_backs + 1 WHERE id = $1 AND status = 'pending'",
    )
    .bind(id.to_string())
    .execute(connection)
    .await?;
    Ok(())
}
