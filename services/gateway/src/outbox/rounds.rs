//! Many outboxes written one after another.

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Instant;

use super::{BATCH, Lanes, Outbox, Outgoing};
use crate::frame::{Class, JobFrame};
use crate::ws::Wire;

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Whole frames.
    pub frames: u64,
    /// Calls that wrote something.
    pub writes: u64,
    /// Frames that left together with an earlier one, or so soon after it that they could have.
    pub joining: u64,
    /// Updates that a newer one had replaced.
    pub conflated: u64,
}

impl AddAssign for Written {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.writes += other.writes;
        self.joining += other.joining;
        self.conflated += other.conflated;
    }
}

/// Progress of many jobs, encoded once for all who take it so.
#[derive(Debug, Default)]
pub struct Batch {
    /// The latest of each job.
    pub frames: Vec<JobFrame>,
    /// The same in few messages.
    pub wires: Vec<Wire>,
}

/// Outboxes that were filled and are to be written together, each once; at the latest when this is dropped.
///
/// Filling first and writing afterwards is what joins the frames of one connection into one write.
#[derive(Debug, Default)]
pub struct Round {
    outboxes: Vec<Arc<Outbox>>,
    /// How many events were queued; progress is not counted, since what waits of it is replaced and does not grow.
    events: usize,
    scratch: Vec<Outgoing>,
}

impl Round {
    /// Queues a message for a connection that was told nothing of its job that comes after it or is it.
    pub fn news(&mut self, outbox: &Arc<Outbox>, frame: &JobFrame) {
        self.events += usize::from(frame.class == Class::Event);
        self.fill(outbox, |lanes| lanes.news(frame));
    }

    /// Queues a message for a connection that may have been told.
    pub fn again(&mut self, outbox: &Arc<Outbox>, frame: &JobFrame) {
        self.events += usize::from(frame.class == Class::Event);
        self.fill(outbox, |lanes| lanes.again(frame));
    }

    /// Queues progress of many jobs for a connection.
    pub fn batch(&mut self, outbox: &Arc<Outbox>, batch: &Batch) {
        self.fill(outbox, |lanes| lanes.batch(batch));
    }

    fn fill(&mut self, outbox: &Arc<Outbox>, fill: impl FnOnce(&mut Lanes)) {
        let mut inner = outbox.lock();
        fill(&mut inner.lanes);
        if !std::mem::replace(&mut inner.dirty, true) {
            self.outboxes.push(Arc::clone(outbox));
        }
    }

    /// Whether nothing waits here.
    pub fn is_empty(&self) -> bool {
        self.outboxes.is_empty()
    }

    /// Whether writing now costs as little for each frame as it ever will: one write of each connection is full.
    pub fn is_full(&self) -> bool {
        self.events >= BATCH * self.outboxes.len().max(1)
    }

    /// Writes everything, as far as the sockets take it.
    pub fn flush(&mut self) -> Written {
        let now = Instant::now();
        self.events = 0;
        let mut sum = Written::default();
        for outbox in self.outboxes.drain(..) {
            sum += outbox.flush_with(&mut self.scratch, now);
        }
        sum
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        // Nobody else would: an outbox stands in one round at a time.
        self.flush();
    }
}
