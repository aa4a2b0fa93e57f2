//! First answers to submits that carry an `Idempotency-Key`.

use sqlx::{Any, AnyConnection};
use stepcast_shared::ids::Owner;

use super::{Dialect, sql};

/// How long an answer is kept.
const KEPT_MS: i64 = 24 * 3600 * 1000;

/// A first answer.
#[derive(Debug, sqlx::FromRow)]
pub struct FirstAnswer {
    /// Hex SHA-256 of the body it answered.
    pub body_hash: String,
    /// JSON.
    pub answer: String,
}

/// Keeps the answer if this is the first; otherwise returns the first.
///
/// To be called in the transaction that accepts the job, before anything else: on PostgreSQL a second submit waits
/// here until the first has committed.
pub async fn keep_or_find(
    connection: &mut AnyConnection,
    dialect: Dialect,
    owner: &Owner,
    key: &str,
    answer: &FirstAnswer,
) -> sqlx::Result<Option<FirstAnswer>> {
    let now = dialect.now();
    sqlx::query(sql(format!("DELETE FROM idempotency WHERE expires_at <= {now}")))
        .execute(&mut *connection)
        .await?;
    let kept = sqlx::query(sql(format!(
        "INSERT INTO idempotency (owner, idempotency_key, body_hash, answer, expires_at) \
         VALUES ($1, $2, $3, $4, {now} + {KEPT_MS}) ON CONFLICT (owner, idempotency_key) DO NOTHING"
    )))
    .bind(owner.as_str())
    .bind(key)
    .bind(&answer.body_hash)
    .bind(&answer.answer)
    .execute(&mut *connection)
    .await?;
    if kept.rows_affected() > 0 {
        return Ok(None);
    }
    sqlx::query_as::<Any, FirstAnswer>(
        "SELECT body_hash, answer FROM idempotency WHERE owner = $1 AND idempotency_key = $2",
    )
    .bind(owner.as_str())
    .bind(key)
    .fetch_optional(connection)
    .await
}
