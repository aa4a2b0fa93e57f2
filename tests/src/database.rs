//! The two databases that the api can keep its rows in, and a look into either.

use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use crate::postgres::Postgres;
use crate::stack::Setup;

/// A database of one test's own.
pub enum Database {
    /// A file in the stack's folder.
    Sqlite,
    /// A cluster.
    Postgres(Box<Postgres>),
}

impl Database {
    /// A fresh PostgreSQL; `None` where there is none to be had.
    pub async fn postgres() -> Option<Self> {
        Postgres::start().await.expect("PostgreSQL starts").map(|postgres| Self::Postgres(Box::new(postgres)))
    }

    /// A stack's setup on it.
    pub fn setup(&self) -> Setup {
        let database_url = match self {
            Self::Sqlite => None,
            Self::Postgres(postgres) => Some(postgres.url()),
        };
        Setup { database_url, ..Setup::default() }
    }
}

/// The one number that a statement of the test's own yields, or how many rows it changed.
pub async fn number(url: &str, statement: &str) -> i64 {
    sqlx::any::install_default_drivers();
    let mut connection = sqlx::AnyConnection::connect(url).await.expect("the database takes a connection");
    if statement.starts_with("SELECT") {
        let row = sqlx::query(AssertSqlSafe(statement.to_owned())).fetch_one(&mut connection).await;
        return row.and_then(|row| row.try_get::<i64, _>(0)).expect("a statement that yields a number");
    }
    let done = sqlx::query(AssertSqlSafe(statement.to_owned())).execute(&mut connection).await;
    i64::try_from(done.expect("a statement that can be run").rows_affected()).expect("few rows")
}
