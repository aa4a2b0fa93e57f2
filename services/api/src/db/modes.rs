//! What a person wants of a backend.

use std::collections::BTreeSet;

use sqlx::{AnyConnection, AnyPool, Row as _};
use stepcast_shared::ids::BackendId;

use super::{Dialect, sql};

/// Whether a backend is to be given no work.
pub async fn is_paused(connection: &mut AnyConnection, backend: &BackendId) -> sqlx::Result<bool> {
    let row = sqlx::query("SELECT mode FROM backend_modes WHERE backend_id = $1")
        .bind(backend.as_str())
        .fetch_optional(connection)
        .await?;
    Ok(row.is_some())
}

/// Every backend that is to be given no work.
pub async fn paused(pool: &AnyPool) -> sqlx::Result<BTreeSet<String>> {
    let rows = sqlx::query("SELECT backend_id FROM backend_modes").fetch_all(pool).await?;
    rows.iter().map(|row| row.try_get("backend_id")).collect()
}

/// Gives a backend no more work; what it renders is finished.
pub async fn pause(
    connection: &mut AnyConnection,
    dialect: Dialect,
    backend: &BackendId,
) -> sqlx::Result<()> {
    sqlx::query(sql(format!(
        "INSERT INTO backend_modes (backend_id, mode, since) VALUES ($1, 'paused', {}) \
         ON CONFLICT (backend_id) DO NOTHING",
        dialect.now()
    )))
    .bind(backend.as_str())
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives a backend work again.
pub async fn resume(connection: &mut AnyConnection, backend: &BackendId) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM backend_modes WHERE backend_id = $1")
        .bind(backend.as_str())
        .execute(connection)
        .await?;
    Ok(())
}
