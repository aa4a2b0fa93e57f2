//! The queue as a whole, for whoever looks ahead: what waits, what runs, and how long the last jobs took.

use sqlx::{Any, AnyPool};

use super::super::{Dialect, sql};

/// A waiting job, as far as it decides who is served when. Times in milliseconds.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct WaitingRow {
    pub id: String,
    pub priority: i64,
    pub pool: String,
    pub model: Option<String>,
    pub wanted_backend: Option<String>,
    pub work: Option<f64>,
    /// Since it was accepted.
    pub waited: i64,
    /// Until it may be claimed; not above 0 if it may be now.
    pub pause: i64,
    /// The backend that has claimed it and not begun.
    pub held_by: Option<String>,
}

/// A running job.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct RunningRow {
    pub id: String,
    pub backend: String,
    pub attempt: i64,
    pub model: Option<String>,
    pub work: Option<f64>,
    /// Milliseconds since its attempt began.
    pub elapsed: i64,
}

/// A job that has ended.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct EndedRow {
    pub status: String,
    pub backend: String,
    pub model: Option<String>,
    pub work: Option<f64>,
    /// Milliseconds from the start of its last attempt to its end.
    pub took: i64,
}

/// Of the first waiting jobs of all owners, by priority and then by age, those that are not being cancelled.
pub async fn waiting(pool: &AnyPool, dialect: Dialect, limit: usize) -> sqlx::Result<Vec<WaitingRow>> {
    let now = dialect.now();
    // The index alone says which are first: the rows of the others are not read.
    sqlx::query_as::<Any, WaitingRow>(sql(format!(
        "SELECT id, priority, pool, model, wanted_backend, work, {now} - created_at AS waited, \
         not_before - {now} AS pause, \
         CASE WHEN claim_token IS NOT NULL AND lease_until > {now} THEN claim_backend END AS held_by \
         FROM jobs WHERE cancelling = 0 AND id IN \
             (SELECT id FROM jobs WHERE status = 'pending' ORDER BY priority DESC, id LIMIT {limit}) \
         ORDER BY priority DESC, id"
    )))
    .fetch_all(pool)
    .await
}

/// Every running job of all owners.
pub async fn running(pool: &AnyPool, dialect: Dialect) -> sqlx::Result<Vec<RunningRow>> {
    sqlx::query_as::<Any, RunningRow>(sql(format!(
        "SELECT id, backend, attempt, model, work, {} - started_at AS elapsed FROM jobs \
         WHERE status = 'running' AND backend IS NOT NULL AND started_at IS NOT NULL",
        dialect.now()
    )))
    .fetch_all(pool)
    .await
}

/// The jobs that ended last after a render, newest first, whatever became of them.
pub async fn ended(pool: &AnyPool, limit: usize) -> sqlx::Result<Vec<EndedRow>> {
    // A condition on the status would have SQLite read and sort every job there is.
    sqlx::query_as::<Any, EndedRow>(sql(format!(
        "SELECT status, backend, model, work, finished_at - started_at AS took FROM jobs \
         WHERE finished_at IS NOT NULL AND backend IS NOT NULL AND started_at IS NOT NULL \
         ORDER BY finished_at DESC LIMIT {limit}"
    )))
    .fetch_all(pool)
    .await
}
