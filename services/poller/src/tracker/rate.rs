//! How fast a sampling pass runs, from the moments at which its counter was seen to move.

use std::{collections::VecDeque, time::Duration};

/// Moments kept: enough to average out the polling, few enough to follow a server that slows down.
const WINDOW: usize = 16;

/// Steps against time within one pass.
#[derive(Clone, Debug, Default)]
pub(super) struct Rate {
    moments: VecDeque<(Duration, u32)>,
}

impl Rate {
    /// Notes that `step` was seen for the first time. The first step is noted but not timed: it holds the warm-up.
    pub(super) fn note(&mut self, at: Duration, step: u32) {
        if self.moments.back().is_some_and(|(_, last)| *last >= step) {
            return;
        }
        if self.moments.len() == WINDOW {
            self.moments.pop_front();
        }
        self.moments.push_back((at, step));
    }

    /// Seconds per step as of `now`, once two moments are known. A step that is long overdue counts as slowness.
    pub(super) fn seconds_per_step(&self, now: Duration) -> Option<f64> {
        let (steps, elapsed) = self.seen()?;
        let mean = elapsed / steps;
        let since = now.saturating_sub(self.moments.back()?.0).as_secs_f64();
        let overdue = since - mean;
        let mean = if overdue > mean { (elapsed + overdue) / steps } else { mean };
        (mean > 0.0).then_some(mean)
    }

    /// Seconds per step up to the last one that was seen, whatever has been waited for since.
    pub(super) fn seconds_per_step_seen(&self) -> Option<f64> {
        let (steps, elapsed) = self.seen()?;
        Some(elapsed / steps)
    }

    /// Steps from the first moment to the last, and the seconds between the two.
    fn seen(&self) -> Option<(f64, f64)> {
        let (first, last) = (self.moments.front()?, self.moments.back()?);
        let steps = f64::from(last.1.checked_sub(first.1).filter(|steps| *steps > 0)?);
        Some((steps, last.0.saturating_sub(first.0).as_secs_f64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(moments: &[(u64, u32)]) -> Rate {
        let mut rate = Rate::default();
        for &(ms, step) in moments {
            rate.note(Duration::from_millis(ms), step);
        }
        rate
    }

    #[test]
    fn two_moments_make_a_rate() {
        assert_eq!(rate(&[(900, 1)]).seconds_per_step(Duration::from_secs(1)), None);
        assert_eq!(rate(&[(900, 1), (1400, 3)]).seconds_per_step(Duration::from_millis(1400)), Some(0.25));
    }

    #[test]
    fn an_overdue_step_slows_it() {
        let rate = rate(&[(0, 1), (1000, 2)]);
        assert_eq!(rate.seconds_per_step(Duration::from_millis(1500)), Some(1.0));
        assert_eq!(rate.seconds_per_step(Duration::from_secs(5)), Some(4.0));
        assert_eq!(rate.seconds_per_step_seen(), Some(1.0));
    }

    #[test]
    fn a_step_back_or_two_steps_at_once_make_none() {
        assert_eq!(rate(&[(0, 5), (100, 2)]).seconds_per_step(Duration::from_secs(1)), None);
        assert_eq!(rate(&[(0, 1), (0, 9)]).seconds_per_step(Duration::ZERO), None);
    }
}
