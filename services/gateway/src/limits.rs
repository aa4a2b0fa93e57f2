//! How many messages a client may send.

use std::time::{Duration, Instant};

/// A token bucket: `burst` at once, `per_second` for long.
#[derive(Clone, Debug)]
pub struct RateLimit {
    burst: f64,
    per_second: f64,
    tokens: f64,
    filled_at: Instant,
    refused_in_a_row: u32,
    patience: u32,
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is read.
    Pass,
    /// It is answered by an error.
    Refuse,
    /// The client has been told often enough.
    Close,
}

impl RateLimit {
    /// A full bucket. A client that goes on regardless is closed after ten bursts of refusals.
    pub fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        Self {
            burst: f64::from(burst),
            per_second: f64::from(per_second),
            tokens: f64::from(burst),
            filled_at: now,
            refused_in_a_row: 0,
            patience: burst.saturating_mul(10),
        }
    }

    /// Counts one message.
    pub fn take(&mut self, now: Instant) -> Verdict {
        let elapsed = now.saturating_duration_since(self.filled_at);
        self.filled_at = now;
        self.tokens = (self.tokens + elapsed.as_secs_f64() * self.per_second).min(self.burst);
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            self.refused_in_a_row = 0;
            return Verdict::Pass;
        }
        self.refused_in_a_row += 1;
        if self.refused_in_a_row > self.patience { Verdict::Close } else { Verdict::Refuse }
    }

    /// How long until the next message would pass.
    pub fn wait(&self) -> Duration {
        Duration::from_secs_f64(((1.0 - self.tokens) / self.per_second).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_waits_its_turn() {
        let start = Instant::now();
        let mut limit = RateLimit::new(10, 5, start);
        assert!((0..5).all(|_| limit.take(start) == Verdict::Pass));
        assert_eq!(limit.take(start), Verdict::Refuse);
        assert!(limit.wait() <= Duration::from_millis(100));
        assert_eq!(limit.take(start + Duration::from_millis(110)), Verdict::Pass);
        assert_eq!(limit.take(start + Duration::from_millis(111)), Verdict::Refuse);
    }

    #[test]
    fn a_long_pause_saves_no_more_than_a_burst() {
        let start = Instant::now();
        let mut limit = RateLimit::new(10, 5, start);
        let later = start + Duration::from_hours(1);
        assert_eq!((0..100).filter(|_| limit.take(later) == Verdict::Pass).count(), 5);
    }

    #[test]
    fn who_never_listens_is_closed() {
        let start = Instant::now();
        let mut limit = RateLimit::new(1, 2, start);
        let verdicts: Vec<Verdict> = (0..23).map(|_| limit.take(start)).collect();
        assert_eq!(verdicts.iter().filter(|v| **v == Verdict::Refuse).count(), 20);
        assert_eq!(verdicts.last(), Some(&Verdict::Close));
    }
}
