//! When the next message may go: at a fixed rate, and never too far ahead of the slowest client.

use std::time::Duration;

/// How fast messages are published.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as the window lets.
    Full,
    /// At a fixed rate.
    Fixed {
        /// Messages a second.
        rate: f64,
        /// What is due within one of these goes out together. Evenly spaced single messages would mostly measure how
        /// long a virtual processor takes to wake up.
        tick: Duration,
    },
}

impl Pace {
    /// How many messages are due in all, this long after the start.
    pub fn due(self, elapsed: Duration) -> u64 {
        match self {
            Self::Full => u64::MAX,
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded down")]
            Self::Fixed { rate, tick } => (ticks(elapsed, tick) * tick.as_secs_f64() * rate) as u64,
        }
    }

    /// When, after the start, there is something to look for again.
    pub fn next(self, elapsed: Duration) -> Duration {
        match self {
            Self::Full => elapsed,
            Self::Fixed { tick, .. } => tick.mul_f64(ticks(elapsed, tick) + 1.0),
        }
    }
}

fn ticks(elapsed: Duration, tick: Duration) -> f64 {
    // A hair more, so that a timer that fires just on time is not taken for early.
    ((elapsed.as_secs_f64() + 1e-6) / tick.as_secs_f64()).floor()
}

/// How far the publisher may be ahead of the slowest client.
///
/// Without it "full speed" would measure how a server drops. The slowest client is looked up only when the last
/// answer no longer suffices, since looking means to pass over every client.
#[derive(Debug)]
pub struct Window {
    size: u64,
    slowest: u64,
}

impl Window {
    /// At most `size` messages that the slowest client has not seen.
    pub fn new(size: u64) -> Self {
        Self { size, slowest: 0 }
    }

    /// How many messages may follow once `published` are out; `slowest` counts those that every client has seen.
    pub fn open(&mut self, published: u64, slowest: impl FnOnce() -> u64) -> u64 {
        // Looked up at half, so that what is found is worth the look.
        if published + self.size / 2 >= self.slowest + self.size {
            self.slowest = slowest();
        }
        self.slowest.saturating_add(self.size).saturating_sub(published)
    }
}

/// Messages of a window: `each` for every job, as far as the servers' own buffers go.
///
/// A NATS client drops what exceeds 65,536 messages of a subscription, and a reader's socket takes some megabytes;
/// within these bounds nothing is lost by anybody.
pub fn window(each: u64, jobs: u64, receivers_of_each: u64) -> u64 {
    const MESSAGES: u64 = 48_000;
    const DELIVERIES: u64 = 96_000;
    let most = MESSAGES.min(DELIVERIES / receivers_of_each.max(1)).max(2);
    (each * jobs).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_time() {
        let pace = Pace::Fixed { rate: 20_000.0, tick: Duration::from_millis(1) };
        assert_eq!(pace.due(Duration::from_micros(49_900)), 980);
        assert_eq!(pace.next(Duration::from_micros(49_900)), Duration::from_millis(50));
        assert_eq!(pace.due(Duration::from_mins(1)), 1_200_000);
        assert_eq!(Pace::Full.due(Duration::ZERO), u64::MAX);
    }

    #[test]
    fn a_rate_below_one_a_tick_is_kept_too() {
        let pace = Pace::Fixed { rate: 20.0, tick: Duration::from_millis(1) };
        assert_eq!(pace.due(Duration::from_millis(49)), 0);
        assert_eq!(pace.due(Duration::from_millis(51)), 1);
        assert_eq!(pace.due(Duration::from_secs(10)), 200);
    }

    #[test]
    fn a_window_opens_as_the_slowest_client_reads() {
        let mut window = Window::new(10);
        assert_eq!(window.open(0, || 0), 10);
        assert_eq!(window.open(10, || 0), 0);
        assert_eq!(window.open(10, || 4), 4);
        assert_eq!(window.open(14, || 14), 10);
        assert_eq!(window.open(14, || panic!("not asked while half is open")), 10);
    }

    #[test]
    fn a_client_that_does_not_count_holds_nobody() {
        assert!(Window::new(10).open(1_000_000, || u64::MAX) > 1_000_000);
    }

    #[test]
    fn windows_stay_within_what_servers_buffer() {
        assert_eq!(window(64, 1, 1_000), 64);
        assert_eq!(window(32, 1_000, 1), 32_000);
        assert_eq!(window(32, 10_000, 1), 48_000);
        assert_eq!(window(64, 1_000, 1_000), 96);
        assert_eq!(window(64, 1, 10_000), 9);
    }
}
