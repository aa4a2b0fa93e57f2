//! What a person wants of a backend.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{AnyConnection, AnyExecutor, AnyPool, Row as _};
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::BackendMode;

use super::{Dialect, sql};

/// First half of the advisory locks on the modes of backends.
const LOCKS: i32 = 0x5374_6d6f;

/// Who else may hold the lock of a backend's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Other claims.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Keeps the mode of a backend as it is until the transaction ends.
///
/// A claim holds it while it chooses, a change of the mode while it is made. So whoever reads that a backend is
/// draining also reads every claim that was granted before.
pub async fn hold(
    connection: &mut AnyConnection,
    dialect: Dialect,
    backend: &BackendId,
    hold: Hold,
) -> sqlx::Result<()> {
    let function = match (dialect, hold) {
        // One writer at a time, and a claim whose reading is older than another's commit is refused.
        (Dialect::Sqlite, _) => return Ok(()),
        (Dialect::Postgres, Hold::Shared) => "pg_advisory_xact_lock_shared",
        (Dialect::Postgres, Hold::Exclusive) => "pg_advisory_xact_lock",
    };
    sqlx::query(sql(format!("SELECT CAST({function}({LOCKS}, hashtext($1)) AS TEXT)")))
        .bind(backend.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

/// Every backend that is to be given no work, and why.
pub async fn modes<'c>(executor: impl AnyExecutor<'c>) -> sqlx::Result<BTreeMap<String, BackendMode>> {
    let rows = sqlx::query("SELECT backend_id, mode FROM backend_modes").fetch_all(executor).await?;
    rows.iter()
        .map(|row| Ok((row.try_get("backend_id")?, read(&row.try_get::<String, _>("mode")?))))
        .collect()
}

/// Gives a backend no more work; what it renders is finished. The last word stands.
pub async fn set(
    connection: &mut AnyConnection,
    dialect: Dialect,
    backend: &BackendId,
    mode: BackendMode,
) -> sqlx::Result<()> {
    hold(connection, dialect, backend, Hold::Exclusive).await?;
    sqlx::query(sql(format!(
        "INSERT INTO backend_modes (backend_id, mode, since) VALUES ($1, $2, {}) \
         ON CONFLICT (backend_id) DO UPDATE SET mode = excluded.mode, since = excluded.since \
         WHERE backend_modes.mode <> excluded.mode",
        dialect.now()
    )))
    .bind(backend.as_str())
    .bind(word(mode))
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

/// Every backend that has ever asked for work, or of which something is wanted.
pub async fn known(pool: &AnyPool) -> sqlx::Result<BTreeSet<String>> {
    let rows =
        sqlx::query("SELECT backend_id FROM backend_epochs UNION SELECT backend_id FROM backend_modes")
            .fetch_all(pool)
            .await?;
    rows.iter().map(|row| row.try_get("backend_id")).collect()
}

/// Every backend that holds a job, begun or not. Reads all waiting jobs.
pub async fn holding(pool: &AnyPool) -> sqlx::Result<BTreeSet<String>> {
    // A start may be recorded after its claim was cleared: then nobody holds the job, and it runs all the same.
    let rows = sqlx::query(
        "SELECT DISTINCT COALESCE(claim_backend, backend) AS holder FROM jobs \
         WHERE status = 'running' OR (status = 'pending' AND claim_token IS NOT NULL)",
    )
    .fetch_all(pool)
    .await?;
    rows.iter().filter_map(|row| row.try_get("holder").transpose()).collect()
}

fn word(mode: BackendMode) -> &'static str {
    match mode {
        BackendMode::Paused => "paused",
        BackendMode::Draining => "draining",
    }
}

/// A word of a newer version keeps the backend from work, too.
fn read(word: &str) -> BackendMode {
    match word {
        "draining" => BackendMode::Draining,
        _ => BackendMode::Paused,
    }
}
