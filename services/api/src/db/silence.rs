//! A database that has gone without a word.
//!
//! A host that loses its power, or a link that loses its packets, breaks no connection: whoever waits for an answer
//! waits until the kernel gives up, a quarter of an hour later, and keeps its place in the pool meanwhile. So every
//! piece of work with the database has a bound, and requests are answered once it has been silent for a while.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Db;

/// Longest time that a piece of work of our own may take.
const LONGEST: Duration = Duration::from_secs(15);
/// Longest time that a database may take to answer the simplest question.
const ANSWER: Duration = Duration::from_secs(5);
/// Silence after which nobody waits any longer.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// Does a piece of work, and gives it up after 15 s: its transaction is rolled back.
pub async fn in_time<T, E: From<sqlx::Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    within(LONGEST, work).await
}

async fn within<T, E: From<sqlx::Error>>(
    bound: Duration,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(bound, work).await.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()))
}

/// Whether the database has been silent for too long.
#[derive(Clone, Debug)]
pub struct Silence {
    answered: Instant,
    too_long: watch::Sender<bool>,
}

impl Default for Silence {
    fn default() -> Self {
        Self::new()
    }
}

impl Silence {
    /// As of a database that has just answered.
    pub fn new() -> Self {
        Self { answered: Instant::now(), too_long: watch::Sender::new(false) }
    }

    /// Asks both kinds of connections, as those of one kind may all be dead, and notes whether they answer.
    pub async fn check(&mut self, db: &Db) -> sqlx::Result<()> {
        let answer = within(ANSWER, db.check()).await;
        if answer.is_ok() {
            self.answered = Instant::now();
        }
        let too_long = self.answered.elapsed() >= GIVEN_UP;
        self.too_long.send_if_modified(|known| std::mem::replace(known, too_long) != too_long);
        answer
    }

    /// Resolves once the database has been silent for too long. Cancel-safe.
    pub async fn is_too_long(&self) {
        let mut too_long = self.too_long.subscribe();
        // The sender lives as long as this borrow.
        let _ = too_long.wait_for(|too_long| *too_long).await;
    }
}
