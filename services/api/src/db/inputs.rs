//! Which input images an owner has stored.

use sqlx::{AnyConnection, AnyExecutor};
use stepcast_shared::ids::Owner;

use super::{Dialect, sql};

/// A stored input image.
#[derive(Clone, Debug)]
pub struct Input {
    /// Hex SHA-256 of its bytes.
    pub id: String,
    /// As read from its bytes.
    pub content_type: &'static str,
    /// Size of the file.
    pub bytes: i64,
    /// Pixels.
    pub width: i64,
    /// Pixels.
    pub height: i64,
}

/// Notes an input image; once more only makes it young again.
pub async fn insert(
    connection: &mut AnyConnection,
    dialect: Dialect,
    owner: &Owner,
    input: &Input,
) -> sqlx::Result<()> {
    sqlx::query(sql(format!(
        "INSERT INTO inputs (owner, id, content_type, bytes, width, height, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, {}) ON CONFLICT (owner, id) DO UPDATE SET created_at = excluded.created_at",
        dialect.now()
    )))
    .bind(owner.as_str())
    .bind(&input.id)
    .bind(input.content_type)
    .bind(input.bytes)
    .bind(input.width)
    .bind(input.height)
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether an owner has stored this input image.
pub async fn exists<'c>(executor: impl AnyExecutor<'c>, owner: &Owner, id: &str) -> sqlx::Result<bool> {
    let row = sqlx::query("SELECT 1 AS present FROM inputs WHERE owner = $1 AND id = $2")
        .bind(owner.as_str())
        .bind(id)
        .fetch_optional(executor)
        .await?;
    Ok(row.is_some())
}
