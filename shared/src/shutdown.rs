//! Who owns the tasks of a process, and how they end.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, error, info, info_span, warn};

/// Owns every task of a process; the first that ends, however it ends, stops the others.
///
/// A process that lost one of its tasks is half alive and hides its fault, so it ends and is started again.
#[derive(Clone, Debug)]
pub struct Supervisor {
    stopping: CancellationToken,
    failed: CancellationToken,
    tasks: TaskTracker,
    grace: Duration,
}

impl Supervisor {
    /// A supervisor that waits at most `grace` for its tasks once it stops.
    pub fn new(grace: Duration) -> Self {
        Self {
            stopping: CancellationToken::new(),
            failed: CancellationToken::new(),
            tasks: TaskTracker::new(),
            grace,
        }
    }

    /// Runs `task`; when it ends, however it ends, the process stops.
    pub fn spawn<T>(&self, name: &'static str, task: T)
    where
        T: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        // Dropped on return and on panic alike.
        let stopping = self.stopping.clone().drop_guard();
        let failed = self.failed.clone();
        let task = async move {
            let _stopping = stopping;
            let failing = failed.clone().drop_guard();
            match task.await {
                Ok(()) => {
                    failing.disarm();
                }
                Err(error) => error!(error = format!("{error:#}"), "task failed"),
            }
        };
        self.tasks.spawn(task.instrument(info_span!("task", name)));
    }

    /// Runs a short task that the process outlives, and waits for it when it stops.
    pub fn spawn_brief<T>(&self, task: T)
    where
        T: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task.in_current_span());
    }

    /// Cancelled once the process stops: take no new work, finish what is in hand.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Asks everything to stop.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Waits for Ctrl-C, SIGTERM or the end of a task, then for the tasks. Errors if one had failed.
    pub async fn run(&self) -> anyhow::Result<()> {
        tokio::select! {
            () = self.stopping.cancelled() => {}
            () = signal() => info!("asked to stop"),
        }
        self.finish().await
    }

    /// Stops, and waits for the tasks for at most the grace. Errors if one had failed.
    pub async fn finish(&self) -> anyhow::Result<()> {
        self.stop();
        self.tasks.close();
        if tokio::time::timeout(self.grace, self.tasks.wait()).await.is_err() {
            warn!(left = self.tasks.len(), "some tasks did not end in time");
        }
        anyhow::ensure!(!self.failed.is_cancelled(), "a task of this process failed");
        Ok(())
    }
}

/// Resolves at Ctrl-C or SIGTERM.
async fn signal() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("a runtime with signals is running");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
