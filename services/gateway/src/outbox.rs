//! What waits to be written to one client.
//!
//! Two lanes. Events and answers are all sent, in order; if too many wait, the client is too slow and is closed.
//! Progress is state: the latest of each job replaces the one not yet sent, so it cannot pile up. Events go first,
//! and an event removes the older progress of its job, so that the order within a job holds across the lanes.
//!
//! The outbox also remembers how far each job has come on this connection, and drops what does not go beyond: live
//! messages, snapshots and repeated reads may then overlap freely.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::extract::ws::{Message, Utf8Bytes};
use bytes::Bytes;
use stepcast_shared::ids::JobId;
use tokio::sync::Notify;

use crate::close::Close;
use crate::frame::JobFrame;
use crate::protocol::Jobs;

mod lanes;

use lanes::Lanes;

/// Most frames that are written before the socket is flushed.
const BATCH: usize = 64;

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Events and answers.
    pub messages: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// The queue of one connection; the hub fills it, the connection's writer empties it.
#[derive(Debug)]
pub struct Outbox {
    lanes: Mutex<Lanes>,
    filled: Notify,
    emptied: Notify,
}

/// What is to be written next.
#[derive(Debug, Default, PartialEq)]
pub struct Batch {
    /// In order.
    pub frames: Vec<Message>,
    /// Goodbye, once the frames are written.
    pub close: Option<Close>,
    /// When held-back progress may go, if nothing else happens.
    pub wake_at: Option<Instant>,
}

impl Outbox {
    /// An empty outbox.
    pub fn new(bounds: Bounds) -> Self {
        Self { lanes: Mutex::new(Lanes::new(bounds)), filled: Notify::new(), emptied: Notify::new() }
    }

    /// Queues an answer of the gateway itself.
    pub fn answer(&self, text: Utf8Bytes) {
        self.fill(|lanes| lanes.push(Message::Text(text)));
    }

    /// Queues a ping.
    pub fn ping(&self) {
        self.fill(|lanes| lanes.push(Message::Ping(Bytes::new())));
    }

    /// Queues a live message. False if it does not go beyond what is known here.
    pub fn live(&self, frame: &JobFrame) -> bool {
        self.fill(|lanes| lanes.live(frame))
    }

    /// Queues a message of a snapshot, ahead of the live ones that are held back for it.
    pub fn snapshot(&self, frame: &JobFrame) -> bool {
        self.fill(|lanes| lanes.accept(frame))
    }

    /// Holds live messages of these jobs back, until [`Self::release`].
    pub fn hold(&self, jobs: &Jobs) {
        self.lock().hold(jobs);
    }

    /// Queues what was held back.
    pub fn release(&self) {
        self.fill(Lanes::release);
    }

    /// Forgets how far these jobs have come; they are no longer watched.
    pub fn forget(&self, jobs: &Jobs) {
        self.lock().forget(jobs);
    }

    /// Forgets those of these jobs that have ended: who asks again is told again.
    pub fn forget_finished(&self, ids: &[JobId]) {
        self.lock().forget_finished(ids);
    }

    /// The jobs that ended since the last call.
    pub fn take_finished(&self) -> Vec<JobId> {
        self.lock().take_finished()
    }

    /// Sends at most so many progress updates a second and job.
    pub fn set_max_rate(&self, per_second: f64) {
        self.lock().set_min_interval(Duration::from_secs_f64(1.0 / per_second));
    }

    /// Ends the connection once what waits is written; nothing more is taken.
    pub fn close(&self, close: Close) {
        self.fill(|lanes| lanes.close(close));
    }

    /// Waits until less than half of what may wait does, or the connection ends. Cancel-safe.
    pub async fn room(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.lock().has_room() {
                return;
            }
            emptied.await;
        }
    }

    /// The next frames to write. Not cancel-safe: frames that were taken are gone.
    pub async fn next(&self) -> Batch {
        loop {
            let filled = self.filled.notified();
            let batch = self.take(Instant::now());
            if !batch.frames.is_empty() || batch.close.is_some() {
                return batch;
            }
            match batch.wake_at {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at.into(), filled).await;
                }
                None => filled.await,
            }
        }
    }

    fn take(&self, now: Instant) -> Batch {
        let mut lanes = self.lock();
        let batch = lanes.take(BATCH, now);
        if lanes.has_room() {
            self.emptied.notify_waiters();
        }
        batch
    }

    fn fill<T>(&self, change: impl FnOnce(&mut Lanes) -> T) -> T {
        let changed = change(&mut self.lock());
        self.filled.notify_one();
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests;
