//! One clock for pace and for timestamps.
//!
//! Wall time is derived from the runtime's clock, so a test that pauses time sees timestamps that agree with it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::time::{Instant, sleep_until};

/// Lateness that is made up for; more than this is lost.
const LAG: Duration = Duration::from_millis(20);

#[derive(Clone, Debug)]
pub(crate) struct Clock {
    wall: DateTime<Utc>,
    origin: Instant,
}

impl Clock {
    pub(crate) fn new() -> Self {
        Self { wall: Utc::now(), origin: Instant::now() }
    }

    /// Unix time in microseconds.
    pub(crate) fn micros(&self) -> i64 {
        let elapsed = i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX);
        self.wall.timestamp_micros().saturating_add(elapsed)
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.micros()).unwrap_or(self.wall)
    }

    /// `20261122223657`, the form of `job_timestamp`.
    pub(crate) fn compact(&self) -> String {
        self.now().format("%Y%m%d%H%M%S").to_string()
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// Walks along absolute deadlines, so that late wake-ups never add up.
#[derive(Debug)]
pub(crate) struct Pace {
    next: Instant,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { next: Instant::now() }
    }

    /// Waits until `duration` after the previous deadline. Cancel-safe only in that the deadline has moved.
    pub(crate) async fn pass(&mut self, duration: Duration) {
        let now = Instant::now();
        if now > self.next + LAG {
            // A server that was held up is late; it does not hurry afterwards.
            self.next = now;
        }
        self.next += duration;
        if self.next > now {
            sleep_until(self.next).await;
        }
    }

    /// Forgets a wait of unknown length, such as one for a lock.
    pub(crate) fn restart(&mut self) {
        self.next = Instant::now();
    }
}
