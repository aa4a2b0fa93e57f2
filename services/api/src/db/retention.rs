//! Removing rows for their age, and finding out what still refers to an object.

use sqlx::{Any, AnyConnection, AnyExecutor, AnyPool, Row as _};
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::job::INPUT_PREFIX;

use super::{Dialect, sql};

/// Ids of jobs that ended so long ago, oldest first; others pass over them until the transaction ends.
pub async fn take_old(
    connection: &mut AnyConnection,
    dialect: Dialect,
    retain_ms: i64,
    limit: u32,
) -> sqlx::Result<Vec<String>> {
    let (now, skip_locked) = (dialect.now(), dialect.skip_locked());
    let rows = sqlx::query(sql(format!(
        "SELECT id FROM jobs WHERE status IN ('completed', 'failed', 'cancelled') AND finished_at <= {now} - $1 \
         ORDER BY finished_at LIMIT {limit}{skip_locked}"
    )))
    .bind(retain_ms)
    .fetch_all(connection)
    .await?;
    rows.iter().map(|row| row.try_get("id")).collect()
}

/// Removes a job with all that belongs to it, and notes that it was there.
pub async fn expire(connection: &mut AnyConnection, dialect: Dialect, id: &str) -> sqlx::Result<()> {
    let tombstone = format!(
        "INSERT INTO expired (id, owner, expired_at) SELECT id, owner, {} FROM jobs WHERE id = $1 \
         ON CONFLICT (id) DO NOTHING",
        dialect.now()
    );
    sqlx::query(sql(tombstone)).bind(id).execute(&mut *connection).await?;
    for statement in [
        "DELETE FROM attempts WHERE job_id = $1",
        "DELETE FROM outbox WHERE job_id = $1",
        "DELETE FROM jobs WHERE id = $1",
    ] {
        sqlx::query(statement).bind(id).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Whether a job of this owner was removed for its age, as far as that is still known.
pub async fn is_expired<'c>(executor: impl AnyExecutor<'c>, owner: &Owner, id: JobId) -> sqlx::Result<bool> {
    let row = sqlx::query("SELECT 1 AS present FROM expired WHERE id = $1 AND owner = $2")
        .bind(id.to_string())
        .bind(owner.as_str())
        .fetch_optional(executor)
        .await?;
    Ok(row.is_some())
}

/// Forgets what was removed so long ago, and first answers that nobody can ask for again.
pub async fn forget(connection: &mut AnyConnection, dialect: Dialect, kept_ms: i64) -> sqlx::Result<()> {
    let now = dialect.now();
    sqlx::query(sql(format!("DELETE FROM expired WHERE expired_at <= {now} - $1")))
        .bind(kept_ms)
        .execute(&mut *connection)
        .await?;
    sqlx::query(sql(format!("DELETE FROM idempotency WHERE expires_at <= {now}")))
        .execute(connection)
        .await?;
    Ok(())
}

/// The requests of a page of jobs that refer to input images: id and request, in the order of ids.
pub async fn referring(pool: &AnyPool, after: &str, limit: u32) -> sqlx::Result<Vec<(String, String)>> {
    sqlx::query_as::<Any, (String, String)>(sql(format!(
        "SELECT id, request FROM jobs WHERE id > $1 AND request LIKE '%\"{INPUT_PREFIX}%' ORDER BY id LIMIT {limit}"
    )))
    .bind(after)
    .fetch_all(pool)
    .await
}

/// Input images that were stored so long ago: owner and id.
pub async fn old_inputs(
    pool: &AnyPool,
    dialect: Dialect,
    retain_ms: i64,
) -> sqlx::Result<Vec<(String, String)>> {
    sqlx::query_as::<Any, (String, String)>(sql(format!(
        "SELECT owner, id FROM inputs WHERE created_at <= {} - $1 ORDER BY id, owner",
        dialect.now()
    )))
    .bind(retain_ms)
    .fetch_all(pool)
    .await
}

/// Forgets an input image, unless it was stored again meanwhile; its bytes stay a while, for whoever is about to
/// refer to it.
pub async fn drop_input(
    connection: &mut AnyConnection,
    dialect: Dialect,
    owner: &str,
    id: &str,
    retain_ms: i64,
) -> sqlx::Result<()> {
    let now = dialect.now();
    sqlx::query(sql(format!("DELETE FROM inputs WHERE owner = $1 AND id = $2 AND created_at <= {now} - $3")))
        .bind(owner)
        .bind(id)
        .bind(retain_ms)
        .execute(&mut *connection)
        .await?;
    sqlx::query(sql(format!(
        "INSERT INTO expired (id, owner, expired_at) VALUES ($1, $2, {now}) \
         ON CONFLICT (id) DO UPDATE SET expired_at = excluded.expired_at"
    )))
    .bind(format!("{INPUT_PREFIX}{id}"))
    .bind(owner)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether somebody has stored this input image, or it was forgotten only so long ago.
pub async fn input_is_kept(pool: &AnyPool, dialect: Dialect, id: &str, grace_ms: i64) -> sqlx::Result<bool> {
    let row = sqlx::query(sql(format!(
        "SELECT 1 AS present FROM inputs WHERE id = $1 \
         UNION ALL SELECT 1 AS present FROM expired WHERE id = $2 AND expired_at > {} - $3",
        dialect.now()
    )))
    .bind(id)
    .bind(format!("{INPUT_PREFIX}{id}"))
    .bind(grace_ms)
    .fetch_optional(pool)
    .await?;
    Ok(row.is_some())
}

/// What decides which objects of a job are kept.
#[derive(Debug, sqlx::FromRow)]
pub struct Holder {
    pub status: String,
    /// JSON: the terminal envelope's data, which names the images.
    pub result: Option<String>,
}

/// The job that may hold images, whosever it is.
pub async fn holder(pool: &AnyPool, id: JobId) -> sqlx::Result<Option<Holder>> {
    sqlx::query_as::<Any, Holder>("SELECT status, result FROM jobs WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(pool)
        .await
}
