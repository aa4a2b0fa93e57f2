//! All SQL, in functions over a connection, usable on the pool and in a transaction.
//!
//! One set of statements serves SQLite and PostgreSQL through `sqlx::Any`; the few places where they differ ask the
//! [`Dialect`]. Leases run on the database's own clock, so that replicas need not agree on the time.

pub mod claims;
pub mod counts;
pub mod idempotency;
pub mod inputs;
pub mod inspect;
pub mod jobs;
pub mod modes;
pub mod outbox;
pub mod projection;
pub mod retention;
pub mod silence;
mod sqlite;
pub mod stats;

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use chrono::Utc;
use secrecy::{ExposeSecret as _, SecretString};
use sqlx::any::AnyPoolOptions;
use sqlx::{AnyConnection, AnyPool, Connection as _, Executor as _, Row as _};
use stepcast_shared::shutdown::Supervisor;
use tokio::time::timeout;

use self::sqlite::{Turn, Writer};

/// Longest wait for a connection before a request is answered with 503.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may take to come back to the pool.
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
    write: Write,
    read: AnyPool,
    /// Held while the database is in use, where it serves one process.
    _lock: Option<Arc<File>>,
}

/// For statements that change something.
#[derive(Clone, Debug)]
enum Write {
    /// SQLite has one writer: waiting for a turn is fair, waiting in SQLite is not.
    Sqlite(Writer),
    Postgres(AnyPool),
}

/// Which database an address is of; an error if it is none that we know.
pub fn dialect_of(url: &str) -> anyhow::Result<Dialect> {
    if url.starts_with("sqlite:") {
        Ok(Dialect::Sqlite)
    } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
        Ok(Dialect::Postgres)
    } else {
        anyhow::bail!("the database URL begins with neither sqlite:// nor postgres://")
    }
}

impl Db {
    /// Connects to `url` (`sqlite://FILE` or `postgres://…`) and brings the schema up to date.
    pub async fn open(url: &SecretString, supervisor: &Supervisor) -> anyhow::Result<Self> {
        sqlx::any::install_default_drivers();
        let url = url.expose_secret();
        let dialect = dialect_of(url)?;
        let (url, lock) = match dialect {
            Dialect::Sqlite => {
                let separator = if url.contains('?') { '&' } else { '?' };
                let url = format!("{url}{separator}mode=rwc");
                let lock = sqlite::lock(&url).await?;
                (url, Some(Arc::new(lock)))
            }
            Dialect::Postgres => (url.to_owned(), None),
        };
        migrate(dialect, &url).await?;
        let (write, readers) = match dialect {
            Dialect::Sqlite => {
                let (writer, work) = Writer::new(url.clone());
                supervisor.spawn("database", work);
                (Write::Sqlite(writer), 4)
            }
            Dialect::Postgres => (Write::Postgres(pool(dialect, 8).connect_lazy(&url)?), 8),
        };
        let read = pool(dialect, readers).connect_lazy(&url).context("the database URL cannot be read")?;
        Ok(Self { dialect, write, read, _lock: lock })
    }

    /// A transaction that may change something. What it reads is certain only once it is committed.
    pub async fn begin(&self) -> sqlx::Result<Transaction> {
        match &self.write {
            Write::Sqlite(writer) => writer.begin().await.map(Transaction::Sqlite),
            Write::Postgres(pool) => pool.begin().await.map(Transaction::Postgres),
        }
    }

    /// Connections for reading.
    pub fn read(&self) -> &AnyPool {
        &self.read
    }

    /// Errors if the connections for reading, or those for writing, have lost their server. A file cannot be lost like
    /// that while it is written.
    async fn check(&self) -> sqlx::Result<()> {
        sqlx::query("SELECT 1").execute(&self.read).await?;
        match &self.write {
            Write::Sqlite(_) => Ok(()),
            Write::Postgres(pool) => sqlx::query("SELECT 1").execute(pool).await.map(drop),
        }
    }

    /// The database's clock, in milliseconds since 1970.
    pub async fn now(&self) -> sqlx::Result<i64> {
        if self.dialect == Dialect::Sqlite {
            // It runs in this process.
            return Ok(Utc::now().timestamp_millis());
        }
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
        sqlite::set_up(&mut connection).await.context("the database cannot be set up")?;
    }
    let migrated = sqlx::migrate!().run(&mut connection).await;
    migrated.context("the database schema cannot be brought up to date")?;
    connection.close().await.context("the database cannot be closed")
}

/// A transaction on either database. Dropped, what it did is undone.
#[derive(Debug)]
pub enum Transaction {
    /// A turn, which shares its commit with others.
    Sqlite(Turn),
    /// One of its own.
    Postgres(sqlx::Transaction<'static, sqlx::Any>),
}

impl Transaction {
    /// Makes its changes last. On an error they may have been made if the connection was lost meanwhile.
    pub async fn commit(self) -> sqlx::Result<()> {
        match self {
            Self::Sqlite(turn) => turn.commit().await,
            Self::Postgres(transaction) => transaction.commit().await,
        }
    }
}

impl Deref for Transaction {
    type Target = AnyConnection;

    fn deref(&self) -> &AnyConnection {
        match self {
            Self::Sqlite(turn) => turn.connection_ref(),
            Self::Postgres(transaction) => transaction,
        }
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut AnyConnection {
        match self {
            Self::Sqlite(turn) => turn.connection(),
            Self::Postgres(transaction) => transaction,
        }
    }
}

fn pool(dialect: Dialect, connections: u32) -> AnyPoolOptions {
    AnyPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                match dialect {
                    Dialect::Sqlite => sqlite::set_up(connection).await?,
                    Dialect::Postgres => set_up_postgres(connection).await?,
                }
                connection.ping().await
            })
        })
        .after_release(move |connection, _| {
            Box::pin(async move {
                // It may still be in the midst of what was given up, or gone without a word.
                let answered = timeout(RELEASE_TIMEOUT, connection.ping()).await;
                answered.map_err(|_| sqlx::Error::PoolTimedOut)??;
                Ok(!connection.is_in_transaction())
            })
        })
}

/// PostgreSQL does not notice for hours that a client is gone, and keeps what it had locked: so a transaction that
/// stands still is ended by the server, and a lock is waited for as long as in SQLite.
async fn set_up_postgres(connection: &mut AnyConnection) -> sqlx::Result<()> {
    for setting in ["SET idle_in_transaction_session_timeout = 10000", "SET lock_timeout = 5000"] {
        connection.execute(setting).await?;
    }
    Ok(())
}

/// Marks a statement built from our own constants as safe: values are always bound, never formatted in.
fn sql(statement: String) -> sqlx::AssertSqlSafe<String> {
    sqlx::AssertSqlSafe(statement)
}
