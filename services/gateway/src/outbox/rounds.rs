//! Many outboxes written one after another.

use std::ops::AddAssign;
use std::sync::Arc;

use super::{Outbox, Outgoing};
use crate::frame::JobFrame;

/// What a flush did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Whole frames.
    pub frames: u64,
    /// Calls that wrote something.
    pub writes: u64,
    /// Updates that a newer one had replaced.
    pub conflated: u64,
}

impl AddAssign for Written {
    fn add_assign(&mut self, other: Self) {
        self.frames += other.frames;
        self.writes += other.writes;
        self.conflated += other.conflated;
    }
}

/// Outboxes that were filled and are to be written together, each once.
///
/// Filling first and writing afterwards is what joins the frames of one connection into one write.
#[derive(Debug, Default)]
pub struct Round {
    outboxes: Vec<Arc<Outbox>>,
    scratch: Vec<Outgoing>,
}

impl Round {
    /// Queues a live message for a connection. False if it does not go beyond what is known there.
    pub fn live(&mut self, outbox: &Arc<Outbox>, frame: &JobFrame) -> bool {
        let mut inner = outbox.lock();
        let new = inner.lanes.live(frame);
        if new && !std::mem::replace(&mut inner.dirty, true) {
            self.outboxes.push(Arc::clone(outbox));
        }
        new
    }

    /// Whether nothing waits here.
    pub fn is_empty(&self) -> bool {
        self.outboxes.is_empty()
    }

    /// Writes everything, as far as the sockets take it.
    pub fn flush(&mut self) -> Written {
        let mut sum = Written::default();
        for outbox in self.outboxes.drain(..) {
            sum += outbox.flush_with(&mut self.scratch);
        }
        sum
    }
}
