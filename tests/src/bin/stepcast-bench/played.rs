//! Backends without a server: they claim as a poller does, and say at once that they have rendered.

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use futures_util::StreamExt as _;
use stepcast_shared::events::{self, LifecycleEvent};
use stepcast_shared::ids::Pool;
use stepcast_shared::messages::{Complete, EventSeq, JobMessage, Started, Status};
use stepcast_shared::rpc::{self, Claim, ClaimAnswer, ClaimRequest};
use stepcast_shared::subjects;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How often an idle one asks when nobody wakes it, as a poller does.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Longest wait for an answer to a claim, as a poller waits.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(3);

/// Plays so many, until what is returned is dropped.
pub(crate) fn play(count: usize, client: &Client) -> JoinSet<anyhow::Result<()>> {
    let mut backends = JoinSet::new();
    for n in 0..count {
        backends.spawn(backend(format!("played-{n}"), client.clone()));
    }
    backends
}

async fn backend(id: String, client: Client) -> anyhow::Result<()> {
    let context = jetstream::new(client.clone());
    let pool = Pool::default();
    let mut wakes = client.queue_subscribe(subjects::wake(&pool), "idle-backends".to_owned()).await?;
    let request = ClaimRequest {
        backend_id: id.parse()?,
        epoch: 1,
        pools: vec![pool],
        loaded_model: None,
        takes_modes: true,
    };
    loop {
        match rpc::call(&client, rpc::CLAIM, &request, CLAIM_TIMEOUT).await {
            Ok(Some(ClaimAnswer::Work(claim))) => run(&context, &request, *claim).await?,
            _ => drop(timeout(ASK_EVERY, wakes.next()).await),
        }
    }
}

async fn run(context: &jetstream::Context, request: &ClaimRequest, claim: Claim) -> anyhow::Result<()> {
    let Claim { job_id, owner, attempt, token, last_event, params, .. } = claim;
    let backend = request.backend_id.clone();
    let started = JobMessage::Started(Started {
        job_id,
        status: Status::Running,
        attempt,
        seq: EventSeq::STARTED,
        params,
        estimated_duration: None,
        backend: backend.clone(),
    });
    let event = LifecycleEvent::new(owner.clone(), started, token.to_string(), last_event);
    let sequence = events::record(context, &event).await?;
    let complete = JobMessage::Complete(Complete {
        job_id,
        status: Status::Completed,
        attempt,
        seq: EventSeq::TERMINAL,
        images: Vec::new(),
        error_message: None,
        total_duration: Some(0.0),
        generation_info: None,
        outputs: Vec::new(),
        error: None,
        backend: Some(backend),
        recovered: false,
        stopped_after_seconds: None,
        timeline: None,
    });
    let event = LifecycleEvent::new(owner, complete, token.to_string(), sequence);
    events::record(context, &event).await?;
    Ok(())
}
