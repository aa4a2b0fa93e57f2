//! Which connection wants which job, and the NATS subscriptions that follow from it.
//!
//! There is one NATS subscription per distinct subject, kept a little longer than it is needed. While a connection
//! watches all jobs of an owner, that owner's single jobs ride on the wildcard, because NATS sends one copy per
//! matching subscription. Whenever one subscription takes over from another both are held for a while, so that
//! nothing falls between; outboxes drop what comes twice.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt as _;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::subjects;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::frame::{JobFrame, NotAFrame};
use crate::outbox::Outbox;

mod table;

use table::{MemberId, Table};

/// How soon after a subscribe the recorded events are read once more: what the broker did between the subscription
/// and the snapshot shows by then.
const FIRST_REREAD: Duration = Duration::from_secs(1);

/// Fans the messages of NATS out to the connections.
#[derive(Debug)]
pub struct Hub {
    client: Client,
    linger: Duration,
    table: Mutex<Table>,
    /// Held while NATS subscriptions are changed, so that whoever watches a subject finds it subscribed.
    changes: tokio::sync::Mutex<()>,
    pumps: TaskTracker,
    stopped: CancellationToken,
    next_member: AtomicU64,
}

/// Ends one NATS subscription when dropped.
type Subscription = tokio_util::sync::DropGuard;

impl Hub {
    /// A hub that nobody has joined.
    pub fn new(client: Client, linger: Duration) -> Self {
        Self {
            client,
            linger,
            table: Mutex::default(),
            changes: tokio::sync::Mutex::default(),
            pumps: TaskTracker::new(),
            stopped: CancellationToken::new(),
            next_member: AtomicU64::new(0),
        }
    }

    /// Adds a connection.
    pub fn join(self: &Arc<Self>, owner: Owner, outbox: Arc<Outbox>) -> Member {
        let id = self.next_member.fetch_add(1, Ordering::Relaxed);
        Member { hub: Arc::clone(self), id, owner, outbox, watched: Mutex::default() }
    }

    /// Hands a message to everybody who wants it; returns how many had not had it.
    pub fn deliver(&self, owner: &Owner, frame: &JobFrame) -> usize {
        self.lock().deliver(owner, frame)
    }

    /// The unfinished watched jobs whose recorded events are due to be read again, by owner; at most `limit` of each.
    pub fn due(&self, now: Instant, limit: usize) -> Vec<(Owner, Vec<JobId>)> {
        self.lock().due(now, limit)
    }

    /// Says when these jobs are due next.
    pub fn set_due(&self, owner: &Owner, ids: &[JobId], at: Instant) {
        self.lock().set_due(owner, ids, at);
    }

    /// Makes every unfinished watched job due now: messages may have been lost.
    pub fn all_due(&self, now: Instant) {
        self.lock().all_due(now);
    }

    /// The owners of whom somebody watches all jobs.
    pub fn watched_owners(&self) -> Vec<Owner> {
        self.lock().watched_owners()
    }

    /// Takes note of jobs of an owner all of whose jobs are watched; those that are new are due at once.
    pub fn note(&self, owner: &Owner, ids: &[JobId], now: Instant) {
        self.lock().note(owner, ids, now);
    }

    /// Ends subscriptions that have not been needed for the linger, and forgets jobs that nobody watches.
    pub async fn sweep(self: &Arc<Self>, now: Instant) {
        let _changes = self.changes.lock().await;
        let retiring = self.lock().retiring_wildcards(now, self.linger);
        for (owner, ids) in retiring {
            for id in ids {
                if let Err(error) = self.subscribe_job(&owner, id).await {
                    warn!(error = format!("{error:#}"), "cannot subscribe to a watched job");
                }
            }
        }
        // Dropped outside the lock, since it wakes the pumps.
        let ended = self.lock().take_idle(now, self.linger);
        drop(ended);
        let (wildcards, jobs) = self.lock().subscriptions();
        metrics::gauge!("stepcast_gateway_nats_subscriptions", "of" => "owner").set(wildcards as f64);
        metrics::gauge!("stepcast_gateway_nats_subscriptions", "of" => "job").set(jobs as f64);
    }

    /// Ends every subscription, and waits for what they had received.
    pub async fn stop(&self) {
        self.stopped.cancel();
        self.pumps.close();
        self.pumps.wait().await;
    }

    async fn subscribe_job(self: &Arc<Self>, owner: &Owner, id: JobId) -> anyhow::Result<()> {
        let subscription = self.subscribe(subjects::all_of_job(owner, id)).await?;
        self.lock().job(owner, id).topic.subscription = Some(subscription);
        Ok(())
    }

    async fn subscribe(self: &Arc<Self>, subject: String) -> anyhow::Result<Subscription> {
        let subscriber = self
            .client
            .subscribe(subject.clone())
            .await
            .with_context(|| format!("cannot subscribe to {subject}"))?;
        let ended = self.stopped.child_token();
        self.pumps.spawn(pump(Arc::clone(self), subscriber, ended.clone()));
        Ok(ended.drop_guard())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics while it holds this lock")
    }
}

/// Passes one subscription's messages on until it is ended.
async fn pump(hub: Arc<Hub>, mut subscriber: Subscriber, ended: CancellationToken) {
    loop {
        let message = tokio::select! {
            () = ended.cancelled() => return,
            message = subscriber.next() => message,
        };
        let Some(message) = message else {
            if !ended.is_cancelled() {
                warn!("a nats subscription ended by itself");
            }
            return;
        };
        match JobFrame::live(message) {
            Ok((owner, frame)) => {
                hub.deliver(&owner, &frame);
            }
            Err(NotAFrame::Preview) => {}
            Err(error) => {
                metrics::counter!("stepcast_gateway_undecodable_total").increment(1);
                debug!(%error, "a message is not passed on");
            }
        }
    }
}

/// A connection's place in the hub; dropping it ends all that it watches.
#[derive(Debug)]
pub struct Member {
    hub: Arc<Hub>,
    id: MemberId,
    owner: Owner,
    outbox: Arc<Outbox>,
    watched: Mutex<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    all: bool,
    ids: HashSet<JobId>,
}

impl Member {
    /// Watches jobs. What is published after this returns arrives in the outbox.
    ///
    /// Errors if NATS is closed for good. A dropped call may or may not have taken effect.
    pub async fn watch(&self, ids: &[JobId]) -> anyhow::Result<()> {
        let _changes = self.hub.changes.lock().await;
        self.watched().ids.extend(ids);
        let missing = {
            let mut table = self.hub.lock();
            let due = Instant::now() + FIRST_REREAD;
            for id in ids {
                table.watch_job(&self.owner, *id, self.id, &self.outbox, due);
            }
            table.unsubscribed(&self.owner, ids)
        };
        for id in missing {
            self.hub.subscribe_job(&self.owner, id).await?;
        }
        Ok(())
    }

    /// Watches all jobs of the owner. What is published after this returns arrives in the outbox.
    ///
    /// Errors if NATS is closed for good. A dropped call may or may not have taken effect.
    pub async fn watch_all(&self) -> anyhow::Result<()> {
        let _changes = self.hub.changes.lock().await;
        self.watched().all = true;
        let subscribed = self.hub.lock().watch_all(&self.owner, self.id, &self.outbox, Instant::now());
        if !subscribed {
            let subscription = self.hub.subscribe(subjects::all_of_owner(&self.owner)).await?;
            self.hub.lock().set_wildcard(&self.owner, subscription, Instant::now());
        }
        Ok(())
    }

    /// Watches these jobs no longer.
    pub fn unwatch(&self, ids: &[JobId]) {
        let mut table = self.hub.lock();
        let mut watched = self.watched();
        for id in ids {
            if watched.ids.remove(id) {
                table.unwatch_job(&self.owner, *id, self.id, Instant::now());
            }
        }
    }

    /// Watches all jobs no longer; those watched by id stay.
    pub fn unwatch_all(&self) {
        if std::mem::take(&mut self.watched().all) {
            self.hub.lock().unwatch_all(&self.owner, self.id, Instant::now());
        }
    }

    /// Watches nothing any longer.
    pub fn unwatch_everything(&self) {
        self.unwatch_all();
        let ids: Vec<JobId> = self.watched().ids.iter().copied().collect();
        self.unwatch(&ids);
    }

    /// The last progress of a job that this gateway has seen.
    pub fn last_progress(&self, id: JobId) -> Option<JobFrame> {
        self.hub.lock().last_progress(&self.owner, id)
    }

    /// Takes note of the owner's active jobs, so that their recorded events are read again.
    pub fn note(&self, ids: &[JobId]) {
        self.hub.note(&self.owner, ids, Instant::now() + FIRST_REREAD);
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.unwatch_everything();
    }
}
