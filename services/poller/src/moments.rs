//! When an attempt got where, as others are told it.

use std::time::Duration;

use stepcast_shared::messages::{Moments, Timestamp};

use crate::tracker::Seen;

/// The clock of one attempt: what its polls showed is counted from the POST, which lies at a time of day.
#[derive(Clone, Copy, Debug)]
pub struct Begun {
    /// The claim arrived.
    pub dispatched: Timestamp,
    /// The request was sent.
    pub posted: Timestamp,
}

impl Begun {
    /// What was seen of it, and when its answer came, if it did.
    pub fn moments(self, seen: &Seen, rendered: Option<Duration>) -> Moments {
        let at = |since: Duration| Timestamp(self.posted.0 + since);
        Moments {
            dispatched: Some(self.dispatched),
            posted: Some(self.posted),
            model_loaded: seen.loaded.map(at),
            first_step: seen.first_step.map(at),
            sampled: seen.sampled.map(at),
            decoded: seen.decoded.map(at),
            rendered: rendered.map(at),
            stored: None,
            resolution_seconds: Some((seen.resolution.as_secs_f64() * 1000.0).round() / 1000.0),
        }
    }
}
