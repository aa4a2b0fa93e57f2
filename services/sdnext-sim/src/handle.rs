//! What a test that runs the server in its own process holds on to.

use std::sync::Arc;

use tokio::sync::OwnedMutexGuard;

use crate::config::Config;
use crate::faults::Fault;
use crate::sim::Sim;
use crate::truth::Truth;

/// A running server from the inside. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    pub(crate) sim: Arc<Sim>,
}

impl Handle {
    /// What truly happens right now.
    pub fn truth(&self) -> Truth {
        self.sim.truth()
    }

    /// Makes `fault` strike the next `jobs` jobs that take the lock, after those armed before.
    /// [`Fault::Wedged`] takes effect at once, whatever `jobs` says.
    pub fn arm(&self, fault: Fault, jobs: u32) {
        self.sim.arm(fault, jobs);
    }

    /// Forgets armed faults and unwedges the server.
    pub fn clear_faults(&self) {
        let mut inner = self.sim.lock();
        inner.faults.clear();
        inner.models.wedged = false;
    }

    /// Makes posts wait, unseen in the state, until what is returned is dropped: as while another has the lock and has
    /// not begun. Waits itself for a job that runs.
    pub async fn hold(&self) -> Held {
        Held { _turn: self.sim.turn.clone().lock_owned().await }
    }

    /// Lets a job that hangs go on.
    pub fn release(&self) {
        self.sim.release.notify_waiters();
    }

    /// Changes the configuration; a job sees it from its next stage on.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) {
        change(&mut self.sim.lock().config);
    }

    /// Closes every connection and stops listening, as if the process had been killed.
    /// Takes effect only on a server run by [`crate::serve()`] or [`crate::start`].
    pub fn kill(&self) {
        self.sim.killed.cancel();
    }

    /// Whether the server was killed.
    pub fn is_killed(&self) -> bool {
        self.sim.killed.is_cancelled()
    }
}

/// Keeps posts waiting while it lives.
#[derive(Debug)]
pub struct Held {
    _turn: OwnedMutexGuard<()>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Handle").finish_non_exhaustive()
    }
}
