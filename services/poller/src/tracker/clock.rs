//! Times the segments of a job from the moments at which it was seen to enter them.

use std::time::Duration;

use super::timeline::Segment;
use crate::weights::{Cost, Timings};

/// When the segment at hand was entered, and what the earlier ones took.
#[derive(Clone, Debug, Default)]
pub(super) struct Clock {
    entered: Duration,
    /// Whether the segment at hand was itself seen, rather than assumed to have begun with the request.
    seen: bool,
    last_poll: Duration,
    timings: Timings,
}

impl Clock {
    /// Notes a poll that was answered.
    pub(super) fn poll(&mut self, at: Duration) {
        self.last_poll = at;
    }

    /// Notes that the segment at hand shows.
    pub(super) fn see(&mut self) {
        self.seen = true;
    }

    /// Notes that `to` is entered after `from`. The change lies somewhere since the poll before: half-way is right on
    /// average, and is returned. `skipped` segments were too short to be seen and teach nothing.
    pub(super) fn cross(&mut self, from: &Segment, skipped: usize, at: Duration) -> Duration {
        let changed = (self.last_poll + at) / 2;
        let assumed = from.cost == Cost::Preparing && skipped == 0;
        if self.seen || assumed {
            self.timings.add(from.cost, from.units, changed.saturating_sub(self.entered));
        }
        self.entered = changed;
        self.seen = true;
        changed
    }

    /// Closes the last segment and hands out everything. A last segment that still samples has no known end.
    pub(super) fn finish(mut self, last: &Segment, at: Duration) -> Timings {
        if self.seen && matches!(last.cost, Cost::Decoding | Cost::Saving | Cost::Loading | Cost::Detailing) {
            self.timings.add(last.cost, last.units, at.saturating_sub(self.entered));
        }
        if last.cost == Cost::Decoding {
            // Too short to be seen says as much about saving as a long one would.
            self.timings.add(Cost::Saving, 1.0, Duration::from_millis(1));
        }
        self.timings
    }
}
