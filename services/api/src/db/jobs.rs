//! Rows of jobs: written on accept, read by everybody.

pub mod queue;

use std::collections::HashMap;

use sqlx::{Any, AnyConnection, AnyExecutor, AnyPool, Row as _};
use stepcast_shared::ids::{BackendId, BatchId, JobId, Owner};
use stepcast_shared::job::{JobRequest, Priority};
use stepcast_shared::messages::Status;
use stepcast_shared::trace::TraceContext;

use super::{Dialect, sql};
use crate::outlook::{megapixel_steps, sampling_steps};

/// A job as the database holds it.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct JobRow {
    pub id: String,
    pub status: String,
    pub attempt: i64,
    pub seq: i64,
    pub params: String,
    pub priority: i64,
    pub pool: String,
    pub label: Option<String>,
    pub model: Option<String>,
    pub wanted_backend: Option<String>,
    pub batch_id: Option<String>,
    pub created_at: i64,
    pub started_at: Option<i64>,
    pub finished_at: Option<i64>,
    pub cancelling: i64,
    pub backend: Option<String>,
    pub result: Option<String>,
    pub message: Option<String>,
}

const COLUMNS: &str = "id, status, attempt, seq, params, priority, pool, label, model, wanted_backend, \
     batch_id, created_at, started_at, finished_at, cancelling, backend, result, message";

impl JobRow {
    /// Where in its life it is.
    pub fn status(&self) -> Status {
        self.status.parse().expect("the status column holds what Status writes")
    }

    /// Its id.
    pub fn job_id(&self) -> JobId {
        self.id.parse().expect("the id column holds what JobId writes")
    }
}

/// A job to be accepted.
pub struct NewJob<'a> {
    pub id: JobId,
    pub owner: &'a Owner,
    pub request: &'a JobRequest,
    /// The request as sent, as JSON.
    pub params: &'a str,
    pub batch_id: Option<BatchId>,
    /// Milliseconds since 1970.
    pub created_at: i64,
    /// The `queued` envelope.
    pub message: &'a str,
    /// Where its trace goes on.
    pub trace: Option<&'a TraceContext>,
}

/// A priority as the column holds it.
pub fn rank(priority: Priority) -> i64 {
    match priority {
        Priority::Low => 0,
        Priority::Normal => 1,
        Priority::High => 2,
    }
}

/// The priority behind a column's value.
pub fn priority(rank: i64) -> Priority {
    match rank {
        0 => Priority::Low,
        1 => Priority::Normal,
        _ => Priority::High,
    }
}

/// Writes a new job, waiting.
pub async fn insert(connection: &mut AnyConnection, job: &NewJob<'_>) -> sqlx::Result<()> {
    let request = serde_json::to_string(job.request).expect("a request holds only what JSON can say");
    let deadline_at = job.request.deadline_seconds.map(|seconds| job.created_at + i64::from(seconds) * 1000);
    sqlx::query(
        "INSERT INTO jobs (id, owner, status, attempt, seq, request, params, priority, pool, label, model, \
         wanted_backend, batch_id, max_attempts, deadline_at, created_at, not_before, cancelling, lease_until, \
         give_backs, message, work, steps, trace) \
         VALUES ($1, $2, 'pending', 0, 0, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, 0, 0, 0, 0, $14, $15, $16, \
         $17)",
    )
    .bind(job.id.to_string())
    .bind(job.owner.as_str())
    .bind(request)
    .bind(job.params)
    .bind(rank(job.request.priority))
    .bind(job.request.pool.as_str())
    .bind(job.request.label.as_deref())
    .bind(job.request.model.as_deref())
    .bind(job.request.backend.as_ref().map(BackendId::as_str))
    .bind(job.batch_id.map(|batch| batch.to_string()))
    .bind(i64::from(job.request.max_attempts))
    .bind(deadline_at)
    .bind(job.created_at)
    .bind(job.message)
    .bind(megapixel_steps(job.request))
    .bind(i64::try_from(sampling_steps(job.request)).unwrap_or(i64::MAX))
    .bind(job.trace.map(TraceContext::to_column))
    .execute(connection)
    .await?;
    Ok(())
}

/// Number of waiting jobs that are served before this one, itself included.
pub async fn position(pool: &AnyPool, job: &JobRow) -> sqlx::Result<i64> {
    sqlx::query(
        "SELECT COUNT(*) AS ahead FROM jobs WHERE status = 'pending' AND pool = $1 \
         AND (priority > $2 OR (priority = $2 AND id <= $3))",
    )
    .bind(&job.pool)
    .bind(job.priority)
    .bind(&job.id)
    .fetch_one(pool)
    .await?
    .try_get("ahead")
}

/// The place of every waiting job of a pool among its like, by id: one statement for a whole list.
pub async fn positions(pool: &AnyPool) -> sqlx::Result<HashMap<String, i64>> {
    let rows = sqlx::query(
        "SELECT id, ROW_NUMBER() OVER (PARTITION BY pool ORDER BY priority DESC, id) AS place \
         FROM jobs WHERE status = 'pending'",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("place")?))).collect()
}

/// One job of an owner.
pub async fn find<'c>(
    executor: impl AnyExecutor<'c>,
    owner: &Owner,
    id: JobId,
) -> sqlx::Result<Option<JobRow>> {
    sqlx::query_as::<Any, JobRow>(sql(format!("SELECT {COLUMNS} FROM jobs WHERE id = $1 AND owner = $2")))
        .bind(id.to_string())
        .bind(owner.as_str())
        .fetch_optional(executor)
        .await
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub status: Option<Status>,
    pub batch_id: Option<BatchId>,
    pub label: Option<String>,
    /// Where their last attempt ran.
    pub backend: Option<String>,
    /// The checkpoint that they ask for.
    pub model: Option<String>,
    /// Only jobs older than this one.
    pub before: Option<JobId>,
    /// At most so many.
    pub limit: u32,
}

/// An owner's jobs, newest first.
pub async fn list(pool: &AnyPool, owner: &Owner, filter: &Filter) -> sqlx::Result<Vec<JobRow>> {
    let wanted = [
        ("status =", filter.status.map(|status| status.to_string())),
        ("batch_id =", filter.batch_id.map(|batch| batch.to_string())),
        ("label =", filter.label.clone()),
        ("backend =", filter.backend.clone()),
        ("model =", filter.model.clone()),
        ("id <", filter.before.map(|id| id.to_string())),
    ];
    let mut conditions = vec!["owner = $1".to_owned()];
    let mut values = vec![owner.to_string()];
    for (condition, value) in wanted {
        if let Some(value) = value {
            values.push(value);
            conditions.push(format!("{condition} ${}", values.len()));
        }
    }
    let statement = format!(
        "SELECT {COLUMNS} FROM jobs WHERE {} ORDER BY id DESC LIMIT {}",
        conditions.join(" AND "),
        filter.limit
    );
    let mut query = sqlx::query_as::<Any, JobRow>(sql(statement));
    for value in values {
        query = query.bind(value);
    }
    query.fetch_all(pool).await
}

/// An owner's waiting and running jobs: running first, then in the order in which they wait.
pub async fn active(pool: &AnyPool, owner: &Owner, limit: u32) -> sqlx::Result<Vec<JobRow>> {
    sqlx::query_as::<Any, JobRow>(sql(format!(
        "SELECT {COLUMNS} FROM jobs WHERE owner = $1 AND status IN ('pending', 'running') \
         ORDER BY CASE status WHEN 'running' THEN 0 ELSE 1 END, priority DESC, id LIMIT {limit}"
    )))
    .bind(owner.as_str())
    .fetch_all(pool)
    .await
}

/// Moves a waiting job of an owner; false if it does not wait.
pub async fn set_priority(
    connection: &mut AnyConnection,
    owner: &Owner,
    id: JobId,
    priority: Priority,
) -> sqlx::Result<bool> {
    let done =
        sqlx::query("UPDATE jobs SET priority = $1 WHERE id = $2 AND owner = $3 AND status = 'pending'")
            .bind(rank(priority))
            .bind(id.to_string())
            .bind(owner.as_str())
            .execute(connection)
            .await?;
    Ok(done.rows_affected() > 0)
}

/// Asks for the end of a job; true if that is news.
pub async fn mark_cancelling(
    connection: &mut AnyConnection,
    dialect: Dialect,
    id: JobId,
) -> sqlx::Result<bool> {
    let done = sqlx::query(sql(format!(
        "UPDATE jobs SET cancelling = 1, cancel_asked_at = {} \
         WHERE id = $1 AND cancelling = 0 AND status IN ('pending', 'running')",
        dialect.now()
    )))
    .bind(id.to_string())
    .execute(connection)
    .await?;
    Ok(done.rows_affected() > 0)
}

/// Reads a job and, on PostgreSQL, holds its row until the transaction ends.
pub async fn lock(
    connection: &mut AnyConnection,
    dialect: Dialect,
    id: JobId,
) -> sqlx::Result<Option<LockedJob>> {
    let lock = match dialect {
        Dialect::Sqlite => "",
        Dialect::Postgres => " FOR UPDATE",
    };
    sqlx::query_as::<Any, LockedJob>(sql(format!(
        "SELECT owner, status, attempt, event_seq, trace, \
         CASE WHEN claim_token IS NOT NULL AND lease_until > {} THEN 1 ELSE 0 END AS claimed \
         FROM jobs WHERE id = $1{lock}",
        dialect.now()
    )))
    .bind(id.to_string())
    .fetch_optional(connection)
    .await
}

/// What decides how a job can be cancelled.
#[derive(Debug, sqlx::FromRow)]
pub struct LockedJob {
    pub owner: String,
    pub status: String,
    pub attempt: i64,
    pub event_seq: Option<i64>,
    /// 1 while a poller holds it.
    pub claimed: i64,
    pub trace: Option<String>,
}

/// Failed attempts of a job, oldest first.
pub async fn attempts(pool: &AnyPool, id: &str) -> sqlx::Result<Vec<AttemptRow>> {
    sqlx::query_as(
        "SELECT attempt, backend, ended_at, error, started_at, retried, timeline FROM attempts WHERE job_id = $1 \
         ORDER BY attempt",
    )
    .bind(id)
    .fetch_all(pool)
    .await
}

/// A failed attempt.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct AttemptRow {
    pub attempt: i64,
    pub backend: Option<String>,
    pub ended_at: i64,
    pub error: String,
    pub started_at: Option<i64>,
    /// 1 if another followed; null where that was not kept.
    pub retried: Option<i64>,
    /// JSON.
    pub timeline: Option<String>,
}

/// Removes an ended job and its history; true if there was one.
pub async fn delete_terminal(connection: &mut AnyConnection, owner: &Owner, id: JobId) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "DELETE FROM jobs WHERE id = $1 AND owner = $2 AND status IN ('completed', 'failed', 'cancelled')",
    )
    .bind(id.to_string())
    .bind(owner.as_str())
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM attempts WHERE job_id = $1 AND NOT EXISTS (SELECT 1 FROM jobs WHERE id = $1)")
        .bind(id.to_string())
        .execute(&mut *connection)
        .await?;
    Ok(done.rows_affected() > 0)
}
