//! Which connection wants which job, and the NATS subscriptions that follow from it.
//!
//! There is one NATS subscription per distinct subject, kept a little longer than it is needed. While a connection
//! watches all jobs of an owner, that owner's single jobs ride on the wildcard, because NATS sends one copy per
//! matching subscription. Whenever one subscription takes over from another both are held for a while, so that
//! nothing falls between; what comes twice is dropped here.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::subjects;

use crate::close::Close;
use crate::feed::Feed;
use crate::frame::JobFrame;
use crate::outbox::{Outbox, Round};

mod changes;
#[cfg(any(test, fuzzing))]
pub(crate) mod course;
mod job;
mod table;

use table::{MemberId, Table};

/// How soon after a subscribe the recorded events are read once more: what the broker did between the subscription
/// and the snapshot shows by then.
const FIRST_REREAD: Duration = Duration::from_secs(1);

/// Fans the messages of NATS out to the connections.
#[derive(Debug)]
pub struct Hub {
    feed: Arc<Feed>,
    linger: Duration,
    table: Mutex<Table>,
    next_member: AtomicU64,
}

impl Hub {
    /// A hub that nobody has joined.
    pub fn new(feed: Arc<Feed>, linger: Duration) -> Self {
        Self { feed, linger, table: Mutex::default(), next_member: AtomicU64::new(0) }
    }

    /// Adds a connection.
    pub fn join(self: &Arc<Self>, owner: Owner, outbox: Arc<Outbox>) -> Member {
        let id = self.next_member.fetch_add(1, Ordering::Relaxed);
        Member { hub: Arc::clone(self), id, owner, outbox, watched: Mutex::default() }
    }

    /// Hands a message to everybody who wants it; returns how many had not had it. `round` is to be flushed.
    pub fn deliver(&self, owner: &Owner, frame: &JobFrame, round: &mut Round) -> usize {
        self.lock().deliver(owner, frame, round)
    }

    /// Hands out what was read, and returns how many had not had it.
    pub fn deliver_all<'a>(&self, frames: impl Iterator<Item = (&'a Owner, &'a JobFrame)>) -> usize {
        let mut round = Round::default();
        let new = frames.map(|(owner, frame)| self.deliver(owner, frame, &mut round)).sum();
        round.flush();
        new
    }

    /// Hands out what has changed since the last call to those who take it in batches. `round` is to be flushed.
    pub fn send_batches(&self, round: &mut Round) {
        self.lock().send_batches(round);
    }

    /// The unfinished watched jobs whose recorded events are due to be read again, by owner; at most `limit` of each.
    pub fn due(&self, now: Instant, limit: usize) -> Vec<(Owner, Vec<JobId>)> {
        self.lock().due(now, limit)
    }

    /// Says when these jobs are due next.
    pub fn set_due(&self, owner: &Owner, ids: &[JobId], at: Instant) {
        self.lock().set_due(owner, ids, at);
    }

    /// Says goodbye to those who cannot be told what they missed by reading single jobs again: who watches all jobs, and
    /// who is told places in the stream.
    pub fn send_away(&self, close: Close) {
        let outboxes = self.lock().all_or_placed();
        metrics::counter!("stepcast_gateway_resyncs_total").increment(outboxes.len() as u64);
        for outbox in outboxes {
            outbox.close(close);
            outbox.flush();
        }
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
        self.lock().note(owner, ids, None, now);
    }

    /// Ends subscriptions that have not been needed for the linger, and forgets jobs that nobody watches.
    pub fn sweep(&self, now: Instant) {
        let mut table = self.lock();
        for (owner, ids) in table.retiring_wildcards(now, self.linger) {
            for id in ids {
                self.subscribe_job(&mut table, &owner, id);
            }
        }
        drop(table.take_idle(now, self.linger));
        let (wildcards, jobs) = table.subscriptions();
        drop(table);
        metrics::gauge!("stepcast_gateway_nats_subscriptions", "of" => "owner").set(wildcards as f64);
        metrics::gauge!("stepcast_gateway_nats_subscriptions", "of" => "job").set(jobs as f64);
    }

    fn subscribe_job(&self, table: &mut Table, owner: &Owner, id: JobId) {
        let subscription = self.feed.subscribe(&subjects::all_of_job(owner, id));
        table.job(owner, id).topic.subscription = Some(subscription);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no code panics while it holds this lock")
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
    /// False if NATS is away: then it arrives once that is back, and what was missed is read. A dropped call has taken
    /// effect.
    pub async fn watch(&self, ids: &[JobId]) -> bool {
        self.watched().ids.extend(ids);
        {
            let mut table = self.hub.lock();
            let due = Instant::now() + FIRST_REREAD;
            for id in ids {
                table.watch_job(&self.owner, *id, self.id, &self.outbox, due);
            }
            for id in table.unsubscribed(&self.owner, ids) {
                self.hub.subscribe_job(&mut table, &self.owner, id);
            }
        }
        // Also where another connection has just subscribed to the same.
        self.hub.feed.settled().await
    }

    /// Watches all jobs of the owner; `batched` for many updates in one message. What is published after this returns arrives in the outbox.
    ///
    /// False if NATS is away: then it arrives once that is back, and what was missed is read. A dropped call has taken
    /// effect.
    pub async fn watch_all(&self, batched: bool) -> bool {
        self.watched().all = true;
        {
            let mut table = self.hub.lock();
            if !table.watch_all(&self.owner, self.id, &self.outbox, batched, Instant::now()) {
                let subscription = self.hub.feed.subscribe(&subjects::all_of_owner(&self.owner));
                table.set_wildcard(&self.owner, subscription, Instant::now());
            }
        }
        self.hub.feed.settled().await
    }

    /// Whether what is watched arrives from now on; false if NATS is away.
    pub async fn settled(&self) -> bool {
        self.hub.feed.settled().await
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

    /// Takes note that this connection is told of these events by a snapshot, and of nothing of the other jobs.
    /// Returns the last progress of each that this gateway has seen.
    pub fn settle(&self, ids: &[JobId], events: &HashMap<JobId, JobFrame>) -> HashMap<JobId, JobFrame> {
        let mut round = Round::default();
        let progress = self.hub.lock().settle(&self.owner, self.id, ids, events, &mut round);
        round.flush();
        progress
    }

    /// Takes note that this connection is about to be told of these jobs, which it watches, as far as they can be read.
    pub fn doubt(&self, ids: &[JobId]) {
        self.hub.lock().doubt(&self.owner, ids, self.id);
    }

    /// Takes note of the owner's active jobs, of which this connection is about to be told.
    pub fn note(&self, ids: &[JobId]) {
        self.hub.lock().note(&self.owner, ids, Some(self.id), Instant::now() + FIRST_REREAD);
    }

    /// Takes note of the owner's active jobs, of which this connection knows already, or is told live.
    pub fn know(&self, ids: &[JobId]) {
        self.hub.lock().note(&self.owner, ids, None, Instant::now() + FIRST_REREAD);
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
