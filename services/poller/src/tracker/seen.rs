//! When a job was seen to get somewhere.
//!
//! A moment is that of the poll which first showed it: never early, and late by no more than polls lie apart. What no
//! poll showed has none.

use std::time::Duration;

use stepcast_shared::messages::Stage;

use super::Tracker;

/// Moments of a job, each as the time since the POST.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether a checkpoint was loaded for it.
    loading: bool,
    /// Something followed the loading of a checkpoint.
    pub loaded: Option<Duration>,
    /// A sampling step was done.
    pub first_step: Option<Duration>,
    /// Every sampling pass was over.
    pub sampled: Option<Duration>,
    /// The last image was decoded.
    pub decoded: Option<Duration>,
    /// The longest time between two polls that could have shown a moment, the POST counting as one.
    pub resolution: Duration,
    last_poll: Duration,
}

impl Tracker {
    /// The moments so far.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// Takes note of a poll that was answered, once it has been taken in.
    pub(super) fn note_moments(&mut self) {
        let over = self.passes.all_decoded();
        let reached = self.confirmed.then_some(self.now);
        let blind = self.begun() && !self.confirmed;
        let seen = &mut self.seen;
        if !blind {
            seen.resolution = seen.resolution.max(self.now.saturating_sub(seen.last_poll));
            seen.last_poll = self.now;
        }
        let note = |moment: &mut Option<Duration>, is_reached: bool| {
            *moment = moment.or(reached.filter(|_| is_reached));
        };
        // A checkpoint that is loaded after the last pass is the one of before, put back.
        let loads = self.stage == Stage::Loading && reached.is_some();
        seen.loading |= loads && !over;
        note(&mut seen.loaded, seen.loading && !loads);
        note(&mut seen.first_step, self.passes.steps_done() > 0);
        note(&mut seen.sampled, over);
        note(&mut seen.decoded, over && self.stage == Stage::Saving);
    }
}
