//! The one writer of a SQLite file: transactions that wait for each other share a commit.
//!
//! A commit writes through to the disk, which costs the same whatever it holds. So whoever wants to change something
//! gets a turn at the one connection, inside a savepoint; while others wait, the next turn begins in the same
//! transaction, and all of them are told once it is committed. One that gives up takes back its own changes alone.
//! Nobody waits for company: a turn that nobody follows is committed at once.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AnyConnection, Connection as _, Executor as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::ACQUIRE_TIMEOUT;

/// Turns that may wait; further ones wait to be let in.
const WAITING: usize = 1024;
/// Turns of one transaction: the first waits for the last.
const TOGETHER: usize = 64;
/// How long a new process waits for its predecessor to end.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// Takes turns at writing.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Ask>,
}

type Ask = oneshot::Sender<sqlx::Result<Turn>>;

impl Writer {
    /// A writer of the file behind `url`, and the future that does its work; that ends once no writer is left.
    pub fn new(url: String) -> (Self, impl Future<Output = anyhow::Result<()>>) {
        let (queue, asks) = mpsc::channel(WAITING);
        (Self { queue }, Work { url, asks }.run())
    }

    /// Waits for a turn. Cancel-safe.
    pub async fn begin(&self) -> sqlx::Result<Turn> {
        let turn = async {
            let (ask, turn) = oneshot::channel();
            self.queue.send(ask).await.map_err(|_| sqlx::Error::PoolClosed)?;
            turn.await.map_err(|_| sqlx::Error::PoolClosed)?
        };
        timeout(ACQUIRE_TIMEOUT, turn).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
    }
}

/// One's turn at the connection. Dropped, what it did is undone.
///
/// What it reads may be of an earlier turn whose commit is still to come: whoever tells a success because of it commits
/// first, even if there is nothing of its own to commit. A refusal may be told at once.
#[derive(Debug)]
pub struct Turn {
    /// There until the turn ends.
    held: Option<(AnyConnection, oneshot::Sender<Ended>)>,
}

/// A turn that has ended.
#[derive(Debug)]
struct Ended {
    connection: AnyConnection,
    /// Who wants to know when its changes are committed; `None` to undo them.
    keep: Option<oneshot::Sender<sqlx::Result<()>>>,
}

impl Turn {
    /// Ends the turn, and waits until its changes are on the disk.
    ///
    /// An error means that they are not. Dropped, the changes are committed all the same.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        let (keep, committed) = oneshot::channel();
        self.end(Some(keep));
        committed.await.unwrap_or(Err(sqlx::Error::PoolClosed))
    }

    /// The connection.
    pub fn connection(&mut self) -> &mut AnyConnection {
        &mut self.held.as_mut().expect("a turn that has ended is gone").0
    }

    /// The connection, for reading.
    pub fn connection_ref(&self) -> &AnyConnection {
        &self.held.as_ref().expect("a turn that has ended is gone").0
    }

    fn end(&mut self, keep: Option<oneshot::Sender<sqlx::Result<()>>>) {
        if let Some((connection, ended)) = self.held.take() {
            // The receiver is gone only with the runtime.
            let _ = ended.send(Ended { connection, keep });
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.end(None);
    }
}

struct Work {
    url: String,
    asks: mpsc::Receiver<Ask>,
}

impl Work {
    async fn run(mut self) -> anyhow::Result<()> {
        let mut connection = None;
        while let Some(ask) = self.asks.recv().await {
            let ready = match connection.take() {
                Some(connection) => Ok(connection),
                None => connect(&self.url).await,
            };
            match ready {
                Ok(ready) => connection = self.transaction(ready, ask).await,
                Err(error) => drop(ask.send(Err(error))),
            }
        }
        Ok(())
    }

    /// Serves who waits, in one transaction. A connection on which anything failed is closed, which undoes all of it.
    async fn transaction(&mut self, mut connection: AnyConnection, first: Ask) -> Option<AnyConnection> {
        if let Err(error) = connection.execute("BEGIN IMMEDIATE; SAVEPOINT turn").await {
            let _ = first.send(Err(error));
            return None;
        }
        let mut kept = Vec::new();
        let mut next = first;
        let mut turns = 0;
        loop {
            turns += 1;
            let ended = hand(connection, next).await?;
            connection = ended.connection;
            let undone = ended.keep.is_none();
            kept.extend(ended.keep);
            let more = if turns < TOGETHER { self.asks.try_recv().ok() } else { None };
            // What SQLite has rolled back by itself, as on a full disk, has no savepoint any more: then this fails.
            let statement = match (undone, &more) {
                (true, Some(_)) => "ROLLBACK TO turn",
                (true, None) => "ROLLBACK TO turn; RELEASE turn; COMMIT",
                (false, Some(_)) => "RELEASE turn; SAVEPOINT turn",
                (false, None) => "RELEASE turn; COMMIT",
            };
            let done = connection.execute(statement).await.map(drop).map_err(Arc::new);
            match (&done, more) {
                (Ok(()), Some(ask)) => next = ask,
                (_, more) => {
                    metrics::histogram!("stepcast_database_turns_per_commit").record(kept.len() as f64);
                    metrics::gauge!("stepcast_database_turns_waiting").set(self.asks.len() as f64);
                    for keep in kept {
                        let _ = keep.send(done.clone().map_err(shared));
                    }
                    if let (Err(error), Some(ask)) = (&done, more) {
                        let _ = ask.send(Err(shared(error.clone())));
                    }
                    return done.is_ok().then_some(connection);
                }
            }
        }
    }
}

/// Gives the connection to who asked, and waits for it.
async fn hand(connection: AnyConnection, ask: Ask) -> Option<Ended> {
    let (ended, waiting) = oneshot::channel();
    // If nobody waits any more, the turn is dropped here, and ends.
    let _ = ask.send(Ok(Turn { held: Some((connection, ended)) }));
    waiting.await.ok()
}

/// One failure, told to everybody whom it concerns.
fn shared(error: Arc<sqlx::Error>) -> sqlx::Error {
    sqlx::Error::Io(io::Error::other(error))
}

async fn connect(url: &str) -> sqlx::Result<AnyConnection> {
    let mut connection = AnyConnection::connect(url).await?;
    set_up(&mut connection).await?;
    Ok(connection)
}

/// WAL lets readers go on while the writer writes; FULL makes a commit survive a power cut, which is what "accepted"
/// promises.
pub async fn set_up(connection: &mut AnyConnection) -> sqlx::Result<()> {
    let settings = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
         PRAGMA foreign_keys = ON";
    connection.execute(settings).await?;
    Ok(())
}

/// Keeps other processes off a file for as long as what is returned lives.
///
/// Readers of SQLite do not mind each other, but writers of two processes wait for each other without an order, and a
/// busy one starves the other.
pub async fn lock(url: &str) -> anyhow::Result<File> {
    let options: SqliteConnectOptions = url.parse()?;
    let mut path = options.get_filename().as_os_str().to_owned();
    path.push("-lock");
    let path = PathBuf::from(path);
    let open = || File::options().create(true).append(true).open(&path);
    let file = open().with_context(|| format!("the database's lock {} cannot be made", path.display()))?;
    let deadline = Instant::now() + PREDECESSOR;
    while let Err(refused) = file.try_lock() {
        match refused {
            std::fs::TryLockError::Error(error) => {
                return Err(error).with_context(|| format!("{} cannot be locked", path.display()));
            }
            std::fs::TryLockError::WouldBlock => anyhow::ensure!(
                Instant::now() < deadline,
                "another process uses the database {}: a SQLite file serves one api; several need PostgreSQL",
                options.get_filename().display()
            ),
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use sqlx::{AssertSqlSafe, Row as _};
    use tempfile::TempDir;
    use tokio::task::JoinSet;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct File {
        writer: Writer,
        url: String,
        _folder: TempDir,
        _work: JoinSet<anyhow::Result<()>>,
    }

    async fn file() -> File {
        sqlx::any::install_default_drivers();
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/test.db?mode=rwc", folder.path().display());
        let (writer, work) = Writer::new(url.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(work);
        let file = File { writer, url, _folder: folder, _work: tasks };
        let mut turn = file.writer.begin().await.unwrap();
        turn.connection().execute("CREATE TABLE seen (n BIGINT PRIMARY KEY)").await.unwrap();
        turn.commit().await.unwrap();
        file
    }

    impl File {
        /// A turn that has written `n`.
        async fn write(&self, n: i64) -> Turn {
            let mut turn = self.writer.begin().await.unwrap();
            turn.connection().execute(insert(n)).await.unwrap();
            turn
        }

        /// What another process sees.
        async fn seen(&self) -> Vec<i64> {
            let mut connection = AnyConnection::connect(&self.url).await.unwrap();
            let rows = sqlx::query("SELECT n FROM seen ORDER BY n").fetch_all(&mut connection).await.unwrap();
            rows.iter().map(|row| row.try_get("n").unwrap()).collect()
        }
    }

    fn insert(n: i64) -> AssertSqlSafe<String> {
        AssertSqlSafe(format!("INSERT INTO seen VALUES ({n})"))
    }

    #[tokio::test]
    async fn turns_that_wait_share_a_commit_and_one_that_gives_up_takes_back_its_own() {
        let file = file().await;
        let first = file.write(1).await;
        // Both wait for their turns before the first ends.
        let (mut second, mut third) = (Box::pin(file.write(2)), Box::pin(file.write(3)));
        assert!(
            futures_util::poll!(&mut second).is_pending() && futures_util::poll!(&mut third).is_pending()
        );
        let mut committed = Box::pin(first.commit());
        let second = tokio::select! {
            second = &mut second => second,
            _ = &mut committed => panic!("committed while another holds its turn in the same transaction"),
        };
        assert_eq!(file.seen().await, [0; 0], "nothing is committed yet");
        drop(second);
        let third = timeout(PATIENCE, &mut third).await.unwrap();
        let (one, three) =
            timeout(PATIENCE, async { tokio::join!(committed, third.commit()) }).await.unwrap();
        one.unwrap();
        three.unwrap();
        assert_eq!(file.seen().await, [1, 3]);
    }

    #[tokio::test]
    async fn who_no_longer_waits_holds_nobody_up() {
        let file = file().await;
        let first = file.write(1).await;
        let mut gone = Box::pin(file.writer.begin());
        assert!(futures_util::poll!(&mut gone).is_pending());
        let mut second = Box::pin(file.write(2));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(gone);
        let (first, second) =
            timeout(PATIENCE, async { tokio::join!(first.commit(), async { second.await.commit().await }) })
                .await
                .unwrap();
        first.unwrap();
        second.unwrap();
        assert_eq!(file.seen().await, [1, 2]);
    }

    #[tokio::test]
    async fn a_transaction_that_sqlite_ends_by_itself_is_nobodys_success() {
        let file = file().await;
        let first = file.write(1).await;
        let mut second = Box::pin(file.writer.begin());
        assert!(futures_util::poll!(&mut second).is_pending());
        let (first, ()) = tokio::join!(first.commit(), async {
            let mut second = second.await.unwrap();
            second.connection().execute("ROLLBACK").await.unwrap();
            second.connection().execute(insert(2)).await.unwrap();
            assert!(second.commit().await.is_err());
        });
        assert!(first.is_err(), "what was undone is not told as done");
        file.write(3).await.commit().await.unwrap();
        assert_eq!(file.seen().await, [2, 3], "and the next goes on");
    }
}
