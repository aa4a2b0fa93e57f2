//! What statistics are made of: counts and sums over what ended within a window, and over what has not ended.
//!
//! Everything is read off indices, in the order of time, and no further back than half a million rows: a longer window is
//! then counted in part, which its rows tell.

use sqlx::{Any, AnyPool, Row as _};

use super::sql;

/// Rows of each kind that are looked at: a second of one core's work, or two.
pub const MOST: i64 = 500_000;

/// Ended jobs that are alike. Times in milliseconds.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct EndedGroup {
    pub backend: Option<String>,
    pub status: String,
    pub error_code: Option<String>,
    /// How long the last attempt took, about; null unless completed.
    pub took: Option<i64>,
    pub jobs: i64,
    /// The sum of how long the last attempts took.
    pub took_sum: i64,
    pub took_max: i64,
    /// How much of that lies within the window.
    pub busy_sum: i64,
    pub steps: i64,
    pub images: i64,
    /// The earliest end; milliseconds since 1970.
    pub first_end: i64,
}

/// Ended jobs that waited about equally long. Times in milliseconds.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct WaitGroup {
    /// Where the last attempt ran.
    pub backend: Option<String>,
    /// From the accept to the first start, about.
    pub wait: i64,
    pub jobs: i64,
    pub wait_sum: i64,
    pub wait_max: i64,
}

/// Attempts that failed alike and were followed by another.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
pub struct RetryGroup {
    pub backend: Option<String>,
    pub code: Option<String>,
    pub attempts: i64,
    /// How much of their time lies within the window, in milliseconds.
    pub busy_sum: i64,
}

/// Jobs that have not ended and are alike.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct DepthGroup {
    pub status: String,
    pub pool: String,
    pub priority: i64,
    pub jobs: i64,
    /// Id of the one that was accepted first.
    pub first_id: String,
}

/// Rounds milliseconds down to about 5 %, as an SQL expression, so that there are few groups however many jobs.
fn about(millis: &str) -> String {
    let mut steps = Vec::new();
    for power in 0..6 {
        let (below, step) = (1_000 * 10_i64.pow(power), 5 * 10_i64.pow(power));
        steps.push(format!("WHEN {millis} < {below} THEN {millis} / {step} * {step}"));
    }
    format!("CASE {} ELSE {millis} / 5000000 * 5000000 END", steps.join(" "))
}

/// The step that durations around this one are rounded down to; both in milliseconds.
pub fn step_at(millis: i64) -> i64 {
    (0..6).map(|power| 10_i64.pow(power)).find(|factor| millis < 1_000 * factor).unwrap_or(1_000_000) * 5
}

/// Jobs that ended after a time, by backend, status, cause and duration.
pub async fn ended(pool: &AnyPool, from: i64) -> sqlx::Result<Vec<EndedGroup>> {
    sqlx::query_as::<Any, EndedGroup>(sql(ended_statement())).bind(from).fetch_all(pool).await
}

fn ended_statement() -> String {
    let took = about("lasted");
    format!(
        "SELECT backend, status, error_code, CASE WHEN status = 'completed' THEN {took} END AS took, \
         COUNT(*) AS jobs, CAST(SUM(lasted) AS BIGINT) AS took_sum, MAX(lasted) AS took_max, \
         CAST(SUM(CASE WHEN lasted < finished_at - $1 THEN lasted ELSE finished_at - $1 END) AS BIGINT) AS busy_sum, \
         CAST(SUM(steps) AS BIGINT) AS steps, CAST(SUM(images) AS BIGINT) AS images, MIN(finished_at) AS first_end \
         FROM (SELECT backend, status, error_code, finished_at, COALESCE(steps, 0) AS steps, \
                   COALESCE(images, 0) AS images, \
                   CASE WHEN started_at < finished_at THEN finished_at - started_at ELSE 0 END AS lasted \
               FROM jobs WHERE finished_at > $1 ORDER BY finished_at DESC LIMIT {MOST}) AS ended \
         GROUP BY backend, status, error_code, CASE WHEN status = 'completed' THEN {took} END"
    )
}

/// Jobs that ended after a time and had been started, by backend and by how long they waited for that.
pub async fn waits(pool: &AnyPool, from: i64) -> sqlx::Result<Vec<WaitGroup>> {
    sqlx::query_as::<Any, WaitGroup>(sql(waits_statement())).bind(from).fetch_all(pool).await
}

fn waits_statement() -> String {
    let wait = about("waited");
    format!(
        "SELECT backend, {wait} AS wait, COUNT(*) AS jobs, CAST(SUM(waited) AS BIGINT) AS wait_sum, \
         MAX(waited) AS wait_max \
         FROM (SELECT backend, \
                   CASE WHEN created_at < first_started_at THEN first_started_at - created_at ELSE 0 END AS waited \
               FROM jobs WHERE finished_at > $1 AND first_started_at IS NOT NULL \
               ORDER BY finished_at DESC LIMIT {MOST}) AS ended \
         GROUP BY backend, {wait}"
    )
}

/// Attempts that failed after a time and were followed by another, by backend and cause.
pub async fn retries(pool: &AnyPool, from: i64) -> sqlx::Result<Vec<RetryGroup>> {
    sqlx::query_as::<Any, RetryGroup>(sql(format!(
        "SELECT backend, code, COUNT(*) AS attempts, \
         CAST(SUM(CASE WHEN lasted < ended_at - $1 THEN lasted ELSE ended_at - $1 END) AS BIGINT) AS busy_sum \
         FROM (SELECT backend, code, ended_at, \
                   CASE WHEN started_at < ended_at THEN ended_at - started_at ELSE 0 END AS lasted \
               FROM attempts WHERE retried = 1 AND ended_at > $1 ORDER BY ended_at DESC LIMIT {MOST}) AS failed \
         GROUP BY backend, code"
    )))
    .bind(from)
    .fetch_all(pool)
    .await
}

/// How many jobs, but for those that were deleted, have an id from this one on.
pub async fn accepted(pool: &AnyPool, first_id: &str) -> sqlx::Result<i64> {
    sqlx::query(sql(format!(
        "SELECT COUNT(*) AS jobs FROM (SELECT id FROM jobs WHERE id >= $1 ORDER BY id DESC LIMIT {MOST}) AS accepted"
    )))
    .bind(first_id)
    .fetch_one(pool)
    .await?
    .try_get("jobs")
}

/// Jobs that wait or run, by pool and priority.
pub async fn depths(pool: &AnyPool) -> sqlx::Result<Vec<DepthGroup>> {
    sqlx::query_as(
        "SELECT status, pool, priority, COUNT(*) AS jobs, MIN(id) AS first_id FROM jobs \
         WHERE status IN ('pending', 'running') GROUP BY status, pool, priority ORDER BY pool, priority DESC",
    )
    .fetch_all(pool)
    .await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sqlx::{Connection as _, SqliteConnection};

    use super::*;

    #[tokio::test]
    async fn durations_are_rounded_as_is_said_of_them() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        for millis in
            [0, 4, 999, 1_000, 1_049, 9_999, 10_000, 123_456, 99_999_999, 1_000_000_000, 5_000_000_123]
        {
            let about: i64 =
                sqlx::query_scalar(sql(format!("SELECT {} FROM (SELECT {millis} AS x)", about("x"))))
                    .fetch_one(&mut connection)
                    .await
                    .unwrap();
            assert_eq!(about, millis / step_at(millis) * step_at(millis));
        }
    }

    #[tokio::test]
    async fn no_row_of_an_ended_job_is_read() {
        let mut connection = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        sqlx::migrate!().run(&mut connection).await.unwrap();
        for statement in [ended_statement(), waits_statement()] {
            let plan: Vec<String> = sqlx::query(sql(format!("EXPLAIN QUERY PLAN {statement}")))
                .bind(0)
                .try_map(|row: sqlx::sqlite::SqliteRow| row.try_get("detail"))
                .fetch_all(&mut connection)
                .await
                .unwrap();
            let looks = plan.iter().filter(|step| step.contains("jobs"));
            assert!(
                looks.clone().all(|step| step.contains("COVERING INDEX jobs_ended (finished_at>?)")),
                "{plan:?}"
            );
            assert_eq!(looks.count(), 1, "{plan:?}");
        }
    }

    proptest! {
        #[test]
        fn a_step_is_a_twentieth_at_most(millis in 100_i64..10_i64.pow(10)) {
            prop_assert!(step_at(millis) * 20 <= millis.max(100));
        }
    }
}
