//! How often a client wants to hear of a job.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use stepcast_shared::ids::JobId;

use crate::protocol::Jobs;

/// Jobs whose last sending is remembered; beyond it all are forgotten, and a few updates come early.
const MOST: usize = 4_096;

/// Least intervals between two updates of one job.
#[derive(Debug, Default)]
pub(super) struct Rates {
    /// Of jobs that have none of their own.
    of_all: Option<Duration>,
    of_job: HashMap<JobId, Duration>,
    sent: HashMap<JobId, Instant>,
}

impl Rates {
    pub(super) fn set(&mut self, jobs: &Jobs, interval: Option<Duration>) {
        match (jobs, interval) {
            (Jobs::All, _) => self.of_all = interval,
            (Jobs::Ids(ids), Some(interval)) => self.of_job.extend(ids.iter().map(|id| (*id, interval))),
            (Jobs::Ids(ids), None) => {
                for id in ids {
                    self.of_job.remove(id);
                }
            }
        }
    }

    pub(super) fn forget(&mut self, ids: &[JobId]) {
        for id in ids {
            self.of_job.remove(id);
            self.sent.remove(id);
        }
    }

    /// When the next update of a job may go; `None` if now, which is then noted.
    pub(super) fn not_before(&mut self, id: JobId, now: impl Fn() -> Instant) -> Option<Instant> {
        let interval = self.of_job.get(&id).copied().or(self.of_all)?;
        let now = now();
        let due = self.sent.get(&id).map(|at| *at + interval).filter(|due| *due > now);
        if due.is_none() {
            if self.sent.len() >= MOST {
                self.sent.clear();
            }
            self.sent.insert(id, now);
        }
        due
    }
}
