//! All SQL, in functions over a connection, usable on the pool and in a transaction.
//!
//! One set of statements serves SQLite and PostgreSQL through `sqlx::Any`; the few places where they differ ask the
//! [`Dialect`]. Leases run on the database's own clock, so that replicas need not agree on the time.

pub mod claims;
pub mod idempotency;
pub mod inputs;
pub mod jobs;
pub mod modes;
pub mod outbox;
pub mod projection;
pub mod retention;
pub mod silence;

use std::time::Duration;

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, Connection as _, Executor as _, Row as _};
use tokio::time::timeout;

/// A transaction on either database.
pub type Transaction = sqlx::Transaction<'static, sqlx::Any>;

/// Longest wait for a connection before a request is answered with 503.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to come back to the pool; longer than SQLite waits for a lock.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(8);

/// Which database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// One file, one writer.
    Sqlite,
    /// A server.
    Postgres,
}

impl Dialect {
    /// Milliseconds since 1970 on the database's clock, as an SQL expression.
    pub fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "CAST((julianday('now') - 2440587.5) * 86400000.0 AS BIGINT)",
            Self::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
        }
    }

    /// Locks the selected rows and passes over those that another replica has locked.
    pub fn skip_locked(self) -> &'static str {
        match self {
            // SQLite has one writer at a time, so there is nothing to pass over.
            Self::Sqlite => "",
            Self::Postgres => " FOR UPDATE SKIP LOCKED",
        }
    }
}

/// The database.
#[derive(Clone, Debug)]
pub struct Db {
    /// Which one it is.
    pub dialect: Dialect,
    /// For statements that change something. SQLite has one writer, so there this is one connection: waiting in the
    /// pool is fair, waiting in SQLite is not.
    write: AnyPool,
    read: AnyPool,
}

impl Db {
    /// Connects to `url` (`sqlite://FILE` or `postgres://…`) and brings the schema up to date.
    pub async fn open(url: &SecretString) -> anyhow::Result<Self> {
        sqlx::any::install_default_drivers();
        let url = url.expose_secret();
        let (dialect, url) = if url.starts_with("sqlite:") {
            let separator = if url.contains('?') { '&' } else { '?' };
            (Dialect::Sqlite, format!("{url}{separator}mode=rwc"))
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            (Dialect::Postgres, url.to_owned())
        } else {
            anyhow::bail!("the database URL begins with neither sqlite:// nor postgres://");
        };
        let (writers, readers) = match dialect {
            Dialect::Sqlite => (1, 4),
            Dialect::Postgres => (8, 8),
        };
        migrate(dialect, &url).await?;
        let write = pool(dialect, writers).connect(&url).await.context("the database cannot be opened")?;
        let read = pool(dialect, readers).connect_lazy(&url).context("the database URL cannot be read")?;
        Ok(Self { dialect, write, read })
    }

    /// A transaction that may change something.
    pub async fn begin(&self) -> sqlx::Result<Transaction> {
        self.write.begin().await
    }

    /// Connections for reading.
    pub fn read(&self) -> &AnyPool {
        &self.read
    }

    /// Errors if the connections for writing have lost their server. A file cannot be lost like that.
    async fn check_writers(&self) -> sqlx::Result<()> {
        if self.dialect == Dialect::Postgres {
            sqlx::query("SELECT 1").execute(&self.write).await?;
        }
        Ok(())
    }

    /// The database's clock, in milliseconds since 1970.
    pub async fn now(&self) -> sqlx::Result<i64> {
        sqlx::query(sql(format!("SELECT {} AS now", self.dialect.now())))
            .fetch_one(&self.read)
            .await?
            .try_get("now")
    }
}

/// Brings the schema up to date, on a connection of its own that may wait for as long as it takes: another replica may
/// be at it.
async fn migrate(dialect: Dialect, url: &str) -> anyhow::Result<()> {
    let connecting = timeout(ACQUIRE_TIMEOUT, AnyConnection::connect(url));
    let connection = connecting.await.unwrap_or(Err(sqlx::Error::PoolTimedOut));
    let mut connection = connection.context("the database cannot be opened")?;
    if dialect == Dialect::Sqlite {
        set_up(&mut connection, dialect).await.context("the database cannot be set up")?;
    }
    let migrated = sqlx::migrate!().run(&mut connection).await;
    migrated.context("the database schema cannot be brought up to date")?;
    connection.close().await.context("the database cannot be closed")
}

fn pool(dialect: Dialect, connections: u32) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                set_up(connection, dialect).await?;
                connection.ping().await
            })
        })
        .after_release(move |connection, _| {
            Box::pin(async move {
                // It may still be in the midst of what was given up, or gone without a word.
                let answered = timeout(RELEASE_TIMEOUT, connection.ping()).await;
                answered.map_err(|_| sqlx::Error::PoolTimedOut)??;
                // SQLite ends a transaction by itself when its disk is full, and sqlx goes on counting it: the next one
                // would be nested in nothing, and what it commits would not be. Such a connection is closed.
                Ok(!connection.is_in_transaction())
            })
        })
}

/// How a connection behaves.
///
/// In SQLite WAL lets readers go on while the writer writes; FULL makes a commit survive a power cut, which is what
/// "accepted" promises. PostgreSQL does not notice for hours that a client is gone, and keeps what it had locked: so a
/// transaction that stands still is ended by the server, and a lock is waited for as long as in SQLite.
async fn set_up(connection: &mut AnyConnection, dialect: Dialect) -> sqlx::Result<()> {
    let settings: &[&str] = match dialect {
        Dialect::Sqlite => &[
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "PRAGMA busy_timeout = 5000",
            "PRAGMA foreign_keys = ON",
        ],
        Dialect::Postgres => &["SET idle_in_transaction_session_timeout = 10000", "SET lock_timeout = 5000"],
    };
    for setting in settings {
        connection.execute(*setting).await?;
    }
    Ok(())
}

/// Marks a statement built from our own constants as safe: values are always bound, never formatted in.
fn sql(statement: String) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(statement)
}
