//! How many jobs wait, without counting all of them for each submit.
//!
//! A short queue is counted exactly. A long one is counted once a second, and what this process accepts is added in
//! between: nobody can tell place 5,000 from place 5,003, and a limit of thousands may be passed by a handful.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::{AnyConnection, Row as _};
use stepcast_shared::ids::Pool;
use stepcast_shared::job::Priority;

use super::jobs::rank;
use super::sql;

/// Longest queue that is counted for each submit.
const SHORT: i64 = 256;
/// Age at which the count of a longer one is taken again.
const STALE: Duration = Duration::from_secs(1);

/// Waiting jobs, by pool and priority.
#[derive(Clone, Debug, Default)]
pub struct Counts(HashMap<(String, i64), i64>);

impl Counts {
    /// All of them.
    pub fn all(&self) -> i64 {
        self.0.values().sum()
    }

    /// Those that are served before a new one of this pool and priority.
    pub fn ahead(&self, pool: &Pool, priority: Priority) -> i64 {
        let goes_first = |(other, rank_of_other): &(String, i64)| {
            other == pool.as_str() && *rank_of_other >= rank(priority)
        };
        self.0.iter().filter(|(key, _)| goes_first(key)).map(|(_, count)| count).sum()
    }

    /// One more.
    pub fn add(&mut self, pool: &Pool, priority: Priority) {
        *self.0.entry((pool.as_str().to_owned(), rank(priority))).or_default() += 1;
    }
}

/// The last count of a long queue.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    long: Arc<Mutex<Option<(Instant, Counts)>>>,
}

impl Counter {
    /// The counts now.
    pub async fn count(&self, connection: &mut AnyConnection) -> sqlx::Result<Counts> {
        let known = self.lock().clone();
        if let Some((at, counts)) = known
            && at.elapsed() < STALE
        {
            return Ok(counts);
        }
        let first_ones =
            format!("(SELECT pool, priority FROM jobs WHERE status = 'pending' LIMIT {SHORT}) AS first_ones");
        let few = counts(&mut *connection, &first_ones).await?;
        if few.all() < SHORT {
            return Ok(few);
        }
        let all = counts(connection, "jobs WHERE status = 'pending'").await?;
        *self.lock() = Some((Instant::now(), all.clone()));
        Ok(all)
    }

    /// Notes a job that this process has accepted.
    pub fn accepted(&self, pool: &Pool, priority: Priority) {
        if let Some((_, counts)) = &mut *self.lock() {
            counts.add(pool, priority);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Counts)>> {
        self.long.lock().expect("no code panics while it holds this lock")
    }
}

async fn counts(connection: &mut AnyConnection, what: &str) -> sqlx::Result<Counts> {
    let statement = format!("SELECT pool, priority, COUNT(*) AS jobs FROM {what} GROUP BY pool, priority");
    let rows = sqlx::query(sql(statement)).fetch_all(connection).await?;
    let counts = rows
        .iter()
        .map(|row| Ok(((row.try_get("pool")?, row.try_get("priority")?), row.try_get("jobs")?)))
        .collect::<sqlx::Result<_>>()?;
    Ok(Counts(counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_pool_and_no_lower_priority_goes_ahead() {
        let (pool, other): (Pool, Pool) = ("default".parse().unwrap(), "sdxl".parse().unwrap());
        let mut counts = Counts::default();
        for (pool, priority) in [
            (&pool, Priority::Low),
            (&pool, Priority::Normal),
            (&pool, Priority::High),
            (&other, Priority::High),
        ] {
            counts.add(pool, priority);
        }
        counts.add(&pool, Priority::Normal);
        assert_eq!(counts.all(), 5);
        assert_eq!(counts.ahead(&pool, Priority::High), 1);
        assert_eq!(counts.ahead(&pool, Priority::Normal), 3);
        assert_eq!(counts.ahead(&pool, Priority::Low), 4);
        assert_eq!(counts.ahead(&other, Priority::Low), 1);
    }
}
