//! The last progress of each running job, for HTTP readers: kept in memory and merged at read time.
//!
//! Pollers repeat the latest progress once a second, so a replica that has just started knows everything a second
//! later, and nothing needs to be written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::Client;
use futures_util::StreamExt as _;
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::{Envelope, JobMessage, ProgressUpdate};
use stepcast_shared::subjects::{self, Kind};
use tokio_util::sync::CancellationToken;

/// Jobs remembered; beyond it, new ones are passed over until old ones have gone.
const CAPACITY: usize = 10_000;
/// Age at which an unrepeated progress is forgotten.
const MAX_AGE: Duration = Duration::from_secs(30);

/// The last progress of each running job.
#[derive(Clone, Debug, Default)]
pub struct ProgressMap(Arc<Mutex<HashMap<JobId, (Instant, ProgressUpdate)>>>);

impl ProgressMap {
    /// The last progress of a job within an attempt, if it is fresh.
    pub fn get(&self, job_id: JobId, attempt: u32) -> Option<ProgressUpdate> {
        let map = self.lock();
        let (seen, update) = map.get(&job_id)?;
        (update.attempt == attempt && seen.elapsed() < MAX_AGE).then(|| update.clone())
    }

    fn note(&self, update: ProgressUpdate) {
        let mut map = self.lock();
        if map.len() >= CAPACITY && !map.contains_key(&update.job_id) {
            metrics::counter!("stepcast_progress_passed_over_total").increment(1);
            return;
        }
        match map.get(&update.job_id) {
            Some((_, known)) if (known.attempt, known.seq) > (update.attempt, update.seq) => {}
            _ => {
                map.insert(update.job_id, (Instant::now(), update));
            }
        }
    }

    fn forget_old(&self) {
        self.lock().retain(|_, (seen, _)| seen.elapsed() < MAX_AGE);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, (Instant, ProgressUpdate)>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

/// Follows the progress of all jobs until the process stops.
pub async fn follow(client: Client, map: ProgressMap, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut updates = client
        .subscribe(subjects::all_of_kind(Kind::Progress))
        .await
        .context("progress cannot be subscribed to")?;
    let mut cleaning = tokio::time::interval(MAX_AGE);
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            _ = cleaning.tick() => map.forget_old(),
            message = updates.next() => {
                let message = message.context("the progress subscription ended")?;
                if let Ok(Envelope { message: JobMessage::Progress(update), .. }) =
                    serde_json::from_slice(&message.payload)
                {
                    map.note(update);
                }
            }
        }
    }
}
