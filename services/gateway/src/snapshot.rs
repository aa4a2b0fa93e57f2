//! Where jobs stand, read rather than heard: the last recorded event of each, from the event stream or, where that
//! has lost it, from api.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use async_nats::connection::State;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::nats::{self, Newest, Start};
use stepcast_shared::rpc::{self, ActiveAnswer, ActiveRequest, LastAnswer, LastMessage, LastRequest};
use stepcast_shared::subjects::{self, EVENTS_STREAM};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::{debug, warn};

use crate::frame::JobFrame;

/// Jobs in one request. Fewer than the server takes, since an answer may hold 256 KiB for each.
pub const BATCH: usize = 200;
/// Active jobs that a snapshot of all jobs holds.
const MOST_ACTIVE: u32 = 1_000;
/// Reads at once, so that all clients of a gateway that was restarted do not ask in the same moment.
const READS_AT_ONCE: usize = 16;

/// Reads recorded events.
#[derive(Debug)]
pub struct Reader {
    client: Client,
    turns: Semaphore,
    timeout: Duration,
}

/// An owner's active jobs.
#[derive(Debug)]
pub struct Active {
    /// Running first, then oldest first.
    pub ids: Vec<JobId>,
    /// Whether there are more, or may be.
    pub truncated: bool,
}

impl Reader {
    /// A reader that waits at most `timeout` for api.
    pub fn new(client: Client, timeout: Duration) -> Self {
        Self { client, turns: Semaphore::new(READS_AT_ONCE), timeout }
    }

    /// The last event that the stream has of each of at most [`BATCH`] jobs; jobs that it lacks are left out.
    ///
    /// `newest` is what must not be lacking, or `None` if a replica may answer that is behind.
    pub async fn recorded(
        &self,
        owner: &Owner,
        ids: &[JobId],
        newest: Option<&Newest>,
    ) -> anyhow::Result<HashMap<JobId, JobFrame>> {
        let _turn = self.turn().await?;
        let subjects: Vec<String> = ids.iter().map(|id| subjects::events_of_job(owner, *id)).collect();
        let messages = nats::multi_last(&self.client, EVENTS_STREAM, &subjects, newest).await?;
        let frames = messages.iter().filter_map(|message| match JobFrame::recorded(message) {
            // One job's last event says nothing of what was recorded before it of others.
            Ok((_, frame)) => Some(frame.without_place()),
            Err(error) => {
                metrics::counter!("stepcast_gateway_undecodable_total").increment(1);
                warn!(%error, "a recorded event is not passed on");
                None
            }
        });
        // The newest may be of another job.
        Ok(latest(frames.filter(|frame| ids.contains(&frame.job_id))))
    }

    /// The newest recorded event of any job.
    pub async fn newest(&self) -> anyhow::Result<Newest> {
        let _turn = self.turn().await?;
        nats::newest(&self.client, EVENTS_STREAM, subjects::ALL_EVENTS).await
    }

    /// The first events recorded after a sequence, at most `most`, and the sequence that they reach.
    pub async fn after(&self, sequence: u64, most: usize) -> anyhow::Result<(Vec<(Owner, JobFrame)>, u64)> {
        let start = Start::After(sequence);
        let messages =
            nats::messages_from(&self.client, EVENTS_STREAM, subjects::ALL_EVENTS, start, most).await?;
        let reached = messages.iter().map(nats::place).fold(sequence, u64::max);
        // What cannot be read was counted when it came by live.
        let frames = messages.iter().filter_map(|message| JobFrame::recorded(message).ok());
        Ok((frames.collect(), reached))
    }

    /// What is read from.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether there is a connection to read over.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Waits for a turn to read. Errors at once while NATS is away: asking would only wait for a timeout.
    pub async fn turn(&self) -> anyhow::Result<SemaphorePermit<'_>> {
        anyhow::ensure!(self.is_connected(), "nats is not connected");
        self.turns.acquire().await.context("the reader is never closed")
    }

    /// The last event of each of at most [`BATCH`] jobs, from wherever it is known; `newest` as in [`Self::recorded`].
    pub async fn last(
        &self,
        owner: &Owner,
        ids: &[JobId],
        newest: Option<&Newest>,
    ) -> anyhow::Result<HashMap<JobId, JobFrame>> {
        let mut frames = self.recorded(owner, ids, newest).await?;
        let missing: Vec<JobId> = ids.iter().filter(|id| !frames.contains_key(id)).copied().collect();
        if missing.is_empty() {
            return Ok(frames);
        }
        let request = LastRequest { owner: owner.clone(), job_ids: missing };
        match rpc::call::<_, LastAnswer>(&self.client, rpc::LAST, &request, self.timeout).await {
            Ok(answer) => frames.extend(answer.jobs.into_iter().filter_map(stored).map(|it| (it.job_id, it))),
            // The stream's answer stands by itself; what api alone knows is read again later.
            // One line per client would say the same a thousand times, so this is counted.
            Err(error) => {
                metrics::counter!("stepcast_gateway_incomplete_snapshots_total", "lacks" => "api")
                    .increment(1);
                debug!(error = %chain(&error), "api did not say what the stream lacks");
            }
        }
        Ok(frames)
    }

    /// The owner's active jobs. Without an answer the list is empty and says that it may not be whole.
    pub async fn active(&self, owner: &Owner) -> Active {
        let request = ActiveRequest { owner: owner.clone(), limit: MOST_ACTIVE };
        match rpc::call::<_, ActiveAnswer>(&self.client, rpc::ACTIVE, &request, self.timeout).await {
            Ok(ActiveAnswer { jobs, truncated }) => Active { ids: jobs, truncated },
            Err(error) => {
                warn!(error = %chain(&error), "api did not list the active jobs");
                Active { ids: Vec::new(), truncated: true }
            }
        }
    }
}

/// A job has one subject per kind, and the server may answer each of them: the one that reaches furthest counts.
pub fn latest(frames: impl Iterator<Item = JobFrame>) -> HashMap<JobId, JobFrame> {
    let mut latest: HashMap<JobId, JobFrame> = HashMap::new();
    for frame in frames {
        match latest.get(&frame.job_id) {
            Some(known) if known.seq >= frame.seq => {}
            _ => {
                latest.insert(frame.job_id, frame);
            }
        }
    }
    latest
}

fn stored(LastMessage { job_id, seq, envelope }: LastMessage) -> Option<JobFrame> {
    let seq = seq.parse().ok()?;
    Some(JobFrame::remembered(job_id, seq, envelope.get()))
}

fn chain(error: &rpc::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_events_of_a_job_the_furthest_counts() {
        let (one, other) = (JobId::mint(), JobId::mint());
        let frame = |job_id, seq: &str| JobFrame::remembered(job_id, seq.parse().unwrap(), seq);
        let frames = [frame(one, "1.2147483646"), frame(one, "2.1"), frame(other, "0.0"), frame(one, "1.1")];
        let mut seqs: Vec<String> =
            latest(frames.into_iter()).values().map(|frame| frame.seq.to_string()).collect();
        seqs.sort();
        assert_eq!(seqs, ["0.0", "2.1"]);
    }
}
