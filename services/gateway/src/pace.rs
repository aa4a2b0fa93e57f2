//! When what was queued is written: at once while writing is cheap, joined once it is not and joining helps.
//!
//! A write to a socket costs some microseconds, whatever it carries. At a moderate rate writing at once is best; at
//! full speed it would leave no time to read. So writing has a share of the processor's time: as long as it keeps to
//! that, frames leave as they come. Beyond it they wait until the share is there again, and leave joined, provided
//! that frames of one connection follow each other closely enough to meet; where they would not, waiting would only
//! be late. The loop thereby waits longer the more connections a round has to write to, and not at all when it has
//! little to do. Nor does it wait for the share once a round is full ([`crate::outbox::Round::is_full`]): then nothing
//! is saved by it.

use std::time::{Duration, Instant};

use crate::outbox::Written;

/// How much of a processor's time writing may take before frames wait for each other.
const SHARE: f64 = 0.3;
/// How much writing may be saved up, for a burst after a quiet time.
const SAVED: Duration = Duration::from_millis(5);
/// Longest wait for the share, whatever was written.
const LONGEST: Duration = Duration::from_millis(30);
/// Least part of the frames that must join others for a wait to be worth it.
const WORTH: f64 = 0.5;
/// How much the last round counts in what is known of joining.
const NEWEST: f64 = 0.1;

/// The account of the time spent on writing.
#[derive(Debug)]
pub struct Pace {
    /// Seconds of writing that may be spent; below 0 they are owed.
    credit: f64,
    /// When that was so.
    at: Instant,
    /// The part of the frames that joined another, or would have if they had waited.
    joining: f64,
}

impl Pace {
    /// Nothing was written lately.
    pub fn new(now: Instant) -> Self {
        Self { credit: SAVED.as_secs_f64(), at: now, joining: 0.0 }
    }

    /// When the next round may be written; in the past if it may be at once.
    pub fn due(&self) -> Instant {
        if self.credit >= 0.0 || self.joining < WORTH {
            return self.at;
        }
        self.at + Duration::from_secs_f64(-self.credit / SHARE).min(LONGEST)
    }

    /// Notes a round that took so much of the processor's time and has just ended.
    pub fn wrote(&mut self, written: Written, took: Duration, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at);
        let earned = elapsed.as_secs_f64() * SHARE;
        self.credit = (self.credit + earned).min(SAVED.as_secs_f64()) - took.as_secs_f64();
        // What a wait of the longest kind did not earn is forgiven, or a few huge rounds would be owed for ever.
        self.credit = self.credit.max(-LONGEST.as_secs_f64() * SHARE);
        self.at = now;
        if written.frames > 0 {
            let joining = written.joining as f64 / written.frames as f64;
            self.joining += (joining - self.joining) * NEWEST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames, all of which join others.
    const JOINING: Written = Written { frames: 10, writes: 1, joining: 10, conflated: 0 };
    /// Frames, none of which does.
    const APART: Written = Written { frames: 10, writes: 10, joining: 0, conflated: 0 };

    /// Writes rounds of a length whenever they are due, and returns how many there were in a second.
    fn rounds_in_a_second(arrivals: Duration, round: Duration, written: Written) -> usize {
        let start = Instant::now();
        let (mut pace, mut now, mut rounds) = (Pace::new(start), start, 0);
        // A while to learn what frames do.
        for _ in 0..100 {
            pace.wrote(written, Duration::ZERO, now);
        }
        while now < start + Duration::from_secs(1) {
            now += arrivals;
            now = now.max(pace.due());
            now += round;
            pace.wrote(written, round, now);
            rounds += 1;
        }
        rounds
    }

    #[test]
    fn rare_messages_are_written_as_they_come() {
        let rounds = rounds_in_a_second(Duration::from_micros(50), Duration::from_micros(7), JOINING);
        assert!(rounds > 17_000, "{rounds}");
    }

    #[test]
    fn a_burst_after_a_quiet_time_does_not_wait() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut now = start;
        for _ in 0..100 {
            assert!(pace.due() <= now);
            now += Duration::from_micros(40);
            pace.wrote(JOINING, Duration::from_micros(40), now);
        }
    }

    #[test]
    fn writing_keeps_to_its_share_however_much_arrives() {
        // A thousand connections cost some 5 ms a round: more than twice as long is left for reading.
        let rounds = rounds_in_a_second(Duration::ZERO, Duration::from_millis(5), JOINING);
        assert!((56..=68).contains(&rounds), "{rounds}");
        let rounds = rounds_in_a_second(Duration::ZERO, Duration::from_micros(100), JOINING);
        assert!((2_850..=3_300).contains(&rounds), "{rounds}");
    }

    #[test]
    fn frames_that_would_meet_no_other_do_not_wait() {
        let rounds = rounds_in_a_second(Duration::ZERO, Duration::from_millis(5), APART);
        assert!(rounds >= 195, "{rounds}");
    }

    #[test]
    fn nothing_waits_longer_than_the_longest() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let ended = start + Duration::from_secs(3);
        for _ in 0..100 {
            pace.wrote(JOINING, Duration::from_secs(3), ended);
        }
        assert!(pace.due() > ended && pace.due() <= ended + LONGEST);
    }
}
