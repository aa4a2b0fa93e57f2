//! Taking a server out of service that fails whatever it is given, and letting it come back.
//!
//! A wedged server looks healthy: it answers every look, and success without images to every job. Left alone it would
//! use up the attempts of the whole queue. So a few failures in a row, none of them a job's own fault, end its service;
//! after a pause a small render of our own tells whether it may come back.

use std::time::Duration;

use stepcast_shared::messages::ErrorCode;
use tokio::time::Instant;

/// Failures in a row that end a server's service.
const TOLERATED: u32 = 3;
/// Pause before the first probe; doubled after each that fails.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause between probes.
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// A server's record.
#[derive(Debug, Default)]
pub struct Quarantine {
    failures: u32,
    /// Until when it rests, and how long the next rest is.
    rest: Option<(Instant, Duration)>,
    reason: String,
}

impl Quarantine {
    /// Takes in how an attempt ended: `None` for a success.
    pub fn note(&mut self, failure: Option<(ErrorCode, &str)>, now: Instant) {
        match failure {
            None => *self = Self::default(),
            Some((code, reason)) if is_the_servers(code) => {
                self.failures += 1;
                reason.clone_into(&mut self.reason);
                if self.failures >= TOLERATED && self.rest.is_none() {
                    self.rest = Some((now + FIRST_PAUSE, FIRST_PAUSE));
                }
            }
            // The job's own fault, or somebody's wish: it says nothing about the server.
            Some(_) => {}
        }
    }

    /// Why the server is out of service; `None` if it is not.
    pub fn reason(&self) -> Option<String> {
        self.rest.map(|_| format!("{} failures in a row, the last: {}", self.failures, self.reason))
    }

    /// Whether it is time to try it.
    pub fn is_probe_due(&self, now: Instant) -> bool {
        self.rest.is_some_and(|(until, _)| now >= until)
    }

    /// Takes in how a probe ended.
    pub fn probed(&mut self, succeeded: bool, now: Instant) {
        if succeeded {
            *self = Self::default();
        } else if let Some((until, pause)) = &mut self.rest {
            *pause = (*pause * 2).min(LONGEST_PAUSE);
            *until = now + *pause;
        }
    }
}

fn is_the_servers(code: ErrorCode) -> bool {
    match code {
        ErrorCode::BackendUnavailable
        | ErrorCode::OutOfMemory
        | ErrorCode::NoImages
        | ErrorCode::WrongSize
        | ErrorCode::Stalled => true,
        ErrorCode::Rejected | ErrorCode::Deadline | ErrorCode::Cancelled | ErrorCode::Internal => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEDGED: Option<(ErrorCode, &str)> = Some((ErrorCode::NoImages, "no images"));

    #[test]
    fn three_failures_in_a_row_end_the_service_and_a_good_probe_restores_it() {
        let now = Instant::now();
        let mut record = Quarantine::default();
        record.note(WEDGED, now);
        record.note(WEDGED, now);
        record.note(None, now);
        record.note(WEDGED, now);
        record.note(WEDGED, now);
        assert_eq!(record.reason(), None, "a success between them starts the count anew");
        record.note(WEDGED, now);
        assert!(record.reason().is_some() && !record.is_probe_due(now));
        assert!(record.is_probe_due(now + FIRST_PAUSE));
        record.probed(false, now + FIRST_PAUSE);
        assert!(!record.is_probe_due(now + FIRST_PAUSE * 2));
        assert!(record.is_probe_due(now + FIRST_PAUSE * 3));
        record.probed(true, now + FIRST_PAUSE * 3);
        assert_eq!(record.reason(), None);
    }

    #[test]
    fn what_is_the_jobs_own_fault_says_nothing_about_the_server() {
        let mut record = Quarantine::default();
        for code in [ErrorCode::Rejected, ErrorCode::Cancelled, ErrorCode::Deadline, ErrorCode::Internal] {
            for _ in 0..5 {
                record.note(Some((code, "")), Instant::now());
            }
        }
        assert_eq!(record.reason(), None);
    }

    #[test]
    fn pauses_double_up_to_a_bound() {
        let mut now = Instant::now();
        let mut record = Quarantine::default();
        for _ in 0..3 {
            record.note(WEDGED, now);
        }
        for _ in 0..20 {
            now += LONGEST_PAUSE;
            assert!(record.is_probe_due(now));
            record.probed(false, now);
        }
    }
}
