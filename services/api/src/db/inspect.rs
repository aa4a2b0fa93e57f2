//! Looking at a database without changing anything in it, for who wants to know whether it is as Stepcast needs it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyConnection, Connection as _, Row as _};
use tokio::time::timeout;

use super::{Dialect, dialect_of, sql};

/// Longest wait for a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a database is.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// Which one it is, and its version.
    pub version: String,
    /// The file, of a database that is one.
    pub file: Option<PathBuf>,
    /// How its schema relates to that of this program.
    pub schema: Schema,
    /// Why nothing can be changed in it, if so.
    pub unwritable: Option<String>,
    /// Whether the connection is encrypted, if that can be asked.
    pub encrypted: Option<bool>,
    /// Its clock, if it has one of its own.
    pub time: Option<DateTime<Utc>>,
    /// Connections that are open, and how many there may be.
    pub connections: Option<(i64, i64)>,
}

/// How a schema relates to that of this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    /// There is none yet: the first start of an api makes it.
    Missing,
    /// The next start of an api brings it up to date, in so many steps.
    Older(usize),
    /// It is this program's.
    Current,
    /// A newer release has been at it.
    Newer,
}

/// Looks at the database behind an address. `None` if it is a file that does not exist yet.
///
/// Errors if it cannot be reached or opened.
pub async fn inspect(url: &SecretString) -> anyhow::Result<Option<Inspected>> {
    sqlx::any::install_default_drivers();
    let url = url.expose_secret();
    let dialect = dialect_of(url)?;
    let (url, file) = match dialect {
        Dialect::Postgres => (url.to_owned(), None),
        Dialect::Sqlite => {
            let options: SqliteConnectOptions = url.parse().context("the database URL cannot be read")?;
            let file = options.get_filename().to_owned();
            if !file.exists() {
                return Ok(None);
            }
            let separator = if url.contains('?') { '&' } else { '?' };
            // Not `rwc`, which would make what is missing.
            (format!("{url}{separator}mode=rw"), Some(file))
        }
    };
    let connecting = timeout(PATIENCE, AnyConnection::connect(&url)).await;
    let connection = connecting.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    let mut connection = connection.context("the database cannot be opened")?;
    let looked = timeout(PATIENCE, look(dialect, file, &mut connection)).await;
    let inspected = looked.context("the database does not answer within 5 s")??;
    connection.close().await.context("the database cannot be closed")?;
    Ok(Some(inspected))
}

async fn look(
    dialect: Dialect,
    file: Option<PathBuf>,
    connection: &mut AnyConnection,
) -> anyhow::Result<Inspected> {
    let schema = schema(dialect, connection).await.context("the schema cannot be read")?;
    let unwritable = unwritable(dialect, schema, connection).await;
    let mut inspected = Inspected {
        version: String::new(),
        file,
        schema,
        unwritable,
        encrypted: None,
        time: None,
        connections: None,
    };
    match dialect {
        Dialect::Sqlite => {
            let version: String = one(connection, "SELECT sqlite_version()").await?;
            inspected.version = format!("SQLite {version}");
        }
        Dialect::Postgres => {
            let version: String = one(connection, "SELECT current_setting('server_version')").await?;
            inspected.version = format!("PostgreSQL {version}");
            let milliseconds =
                one(connection, "SELECT CAST(extract(epoch from clock_timestamp()) * 1000 AS BIGINT)")
                    .await?;
            inspected.time = DateTime::from_timestamp_millis(milliseconds);
            let encrypted =
                "SELECT CAST(count(*) AS BIGINT) FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";
            inspected.encrypted = Some(one::<i64>(connection, encrypted).await? > 0);
            let open =
                "SELECT CAST(count(*) AS BIGINT) FROM pg_stat_activity WHERE backend_type = 'client backend'";
            let most = "SELECT CAST(current_setting('max_connections') AS BIGINT)";
            inspected.connections = Some((one(connection, open).await?, one(connection, most).await?));
        }
    }
    Ok(inspected)
}

/// The one value of a statement.
async fn one<T>(connection: &mut AnyConnection, statement: &'static str) -> sqlx::Result<T>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Any> + sqlx::Type<sqlx::Any>,
{
    sqlx::query(statement).fetch_one(connection).await?.try_get(0)
}

async fn schema(dialect: Dialect, connection: &mut AnyConnection) -> sqlx::Result<Schema> {
    let tables = match dialect {
        Dialect::Sqlite => {
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'"
        }
        Dialect::Postgres => {
            "SELECT CAST(count(*) AS BIGINT) FROM pg_class WHERE oid = to_regclass('_sqlx_migrations')"
        }
    };
    if one::<i64>(connection, tables).await? == 0 {
        return Ok(Schema::Missing);
    }
    let rows = sqlx::query("SELECT version FROM _sqlx_migrations").fetch_all(connection).await?;
    let found = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<BTreeSet<i64>>>()?;
    let own: BTreeSet<i64> = sqlx::migrate!().iter().map(|migration| migration.version).collect();
    Ok(match own.difference(&found).count() {
        _ if !found.is_subset(&own) => Schema::Newer,
        0 => Schema::Current,
        steps => Schema::Older(steps),
    })
}

/// Why nothing can be changed. A file is locked for a moment, and nothing is written to it.
async fn unwritable(dialect: Dialect, schema: Schema, connection: &mut AnyConnection) -> Option<String> {
    let tried = match dialect {
        Dialect::Sqlite => {
            let begun = sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await;
            if begun.is_ok() {
                // Whatever comes of it, the connection is closed next.
                let _ = sqlx::query("ROLLBACK").execute(connection).await;
            }
            begun.map(drop).map_err(|error| error.to_string())
        }
        Dialect::Postgres => may_write(schema, connection)
            .await
            .map_err(|error| error.to_string())
            .and_then(|why| why.map_or(Ok(()), |why| Err(why.to_owned()))),
    };
    tried.err()
}

async fn may_write(schema: Schema, connection: &mut AnyConnection) -> sqlx::Result<Option<&'static str>> {
    let read_only: String = one(connection, "SELECT current_setting('transaction_read_only')").await?;
    if read_only == "on" {
        return Ok(Some("it takes no changes: it is a replica, or set to read only"));
    }
    if schema != Schema::Current {
        let may_create = "SELECT CAST(has_schema_privilege(current_schema(), 'CREATE') AS INT)";
        if one::<i32>(connection, may_create).await? == 0 {
            return Ok(Some("this user may not make tables in it"));
        }
    }
    if schema != Schema::Missing {
        let statement = sql(
            "SELECT CAST(has_table_privilege('jobs', 'SELECT') AND has_table_privilege('jobs', 'INSERT') \
             AND has_table_privilege('jobs', 'UPDATE') AND has_table_privilege('jobs', 'DELETE') AS INT)"
                .to_owned(),
        );
        let may_change: i32 = sqlx::query(statement).fetch_one(connection).await?.try_get(0)?;
        if may_change == 0 {
            return Ok(Some("this user may not change its tables"));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use stepcast_shared::shutdown::Supervisor;

    use super::*;
    use crate::db::Db;

    #[tokio::test]
    async fn a_file_is_told_apart_by_its_schema_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let url = SecretString::from(format!("sqlite://{}/x.db", folder.path().display()));
        assert!(inspect(&url).await.unwrap().is_none());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);

        std::fs::write(folder.path().join("x.db"), "").unwrap();
        assert_eq!(inspect(&url).await.unwrap().unwrap().schema, Schema::Missing);

        let supervisor = Supervisor::new(PATIENCE);
        let db = Db::open(&url, &supervisor).await.unwrap();
        let inspected = inspect(&url).await.unwrap().unwrap();
        assert_eq!((inspected.schema, inspected.unwritable), (Schema::Current, None));
        assert!(inspected.version.starts_with("SQLite 3"), "{}", inspected.version);

        let mut writing = db.begin().await.unwrap();
        for (statement, schema) in [
            (
                "DELETE FROM _sqlx_migrations WHERE version > 4",
                Schema::Older(sqlx::migrate!().iter().count() - 4),
            ),
            ("UPDATE _sqlx_migrations SET version = 9999 WHERE version = 1", Schema::Newer),
        ] {
            sqlx::query(statement).execute(&mut *writing).await.unwrap();
            writing.commit().await.unwrap();
            assert_eq!(inspect(&url).await.unwrap().unwrap().schema, schema);
            writing = db.begin().await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_no_database_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "This is a diary, and has been one for a long time already.".repeat(9))
            .unwrap();
        let url = SecretString::from(format!("sqlite://{}", file.path().display()));
        assert!(inspect(&url).await.is_err());
    }
}
