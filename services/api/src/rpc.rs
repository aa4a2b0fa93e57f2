//! The NATS micro service `stepcast`: what other services ask of api, shared out over its replicas.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::service::{self, Request, ServiceExt as _};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::EventSeq;
use stepcast_shared::problem::Problem;
use stepcast_shared::rpc::{
    self, ActiveAnswer, ActiveRequest, CancelAnswer, CancelRequest, ClaimRequest, GetRequest, LastAnswer,
    LastMessage, LastRequest, ReleaseRequest, RenewRequest, RetryAnswer, RetryRequest, SchemaAnswer,
    SchemaRequest, StatsRequest, SubmitAnswer, SubmitRequest,
};
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::trace::{SpanExt as _, TraceContext};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{Instrument as _, Span, debug_span, warn};

use crate::accept::{self, Submission};
use crate::cancel;
use crate::contract;
use crate::db::jobs;
use crate::dispatch;
use crate::error::Error;
use crate::fresh;
use crate::meter;
use crate::retry;
use crate::state::AppState;
use crate::stats;
use crate::view;

/// Requests answered at the same time; more wait in their subscription.
const CONCURRENCY: usize = 64;
/// Most jobs of one `active` answer.
const MAX_ACTIVE: u32 = 1_000;
/// Most jobs of one `last`, `cancel`, `retry` or `submit`.
const MAX_JOBS: usize = 1_000;
/// Longest time to answer a claim: the poller waits a second more.
const LONGEST_CLAIM: Duration = Duration::from_secs(2);
/// Longest time to answer, after which the asker has given up.
const LONGEST: Duration = Duration::from_secs(10);

/// Answers requests until the process stops.
pub async fn serve(state: AppState, supervisor: Supervisor) -> anyhow::Result<()> {
    let started = state
        .nats
        .service_builder()
        .description("Stepcast: accepts jobs and decides who runs what")
        .queue_group("api")
        .start(rpc::SERVICE_NAME, env!("CARGO_PKG_VERSION"))
        .await;
    let service =
        started.map_err(anyhow::Error::from_boxed).context("the micro service cannot be started")?;
    let group = service.group(stepcast_shared::subjects::RPC_PREFIX);
    let mut endpoints = futures_util::stream::SelectAll::new();
    for contract in contract::ENDPOINTS {
        let endpoint = group.endpoint_builder().name(contract.name).metadata(contract.metadata());
        let endpoint = endpoint.add(contract.name).await.map_err(anyhow::Error::from_boxed)?;
        endpoints.push(endpoint.map(move |request| (contract.name, request)));
    }
    let free = std::sync::Arc::new(Semaphore::new(CONCURRENCY));
    loop {
        let permit = free.clone().acquire_owned().await.expect("this semaphore is never closed");
        let (name, request) = tokio::select! {
            () = supervisor.stopping().cancelled() => break,
            next = endpoints.next() => next.context("the micro service ended")?,
        };
        let state = state.clone();
        supervisor.spawn_brief(async move {
            let asked = TraceContext::of_message(request.message.headers.as_ref());
            let span = asked.map_or_else(Span::none, |asked| span(name).continues(Some(&asked)));
            let answered = timeout(LONGEST, answer(&state, name, &request));
            if answered.instrument(span).await.is_err() {
                warn!(name, "request not answered in time");
            }
            drop(permit);
        });
    }
    service.stop().await.map_err(anyhow::Error::from_boxed)
}

/// A request that comes from within a trace. Idle backends ask from outside of any, once a second.
fn span(name: &'static str) -> Span {
    debug_span!(
        "answer",
        otel.kind = "server",
        otel.name = format!("{}/{name}", rpc::SERVICE_NAME),
        rpc.system = "nats",
        rpc.service = rpc::SERVICE_NAME,
        rpc.method = name,
    )
}

async fn answer(state: &AppState, name: &'static str, request: &Request) {
    let (payload, begun) = (&request.message.payload, Instant::now());
    let result = match name {
        rpc::CLAIM => {
            // A claim that is answered too late is a job that nobody renders for a lease, so it is rolled back.
            let claim = async |q: ClaimRequest| match timeout(LONGEST_CLAIM, dispatch::claim(state, &q)).await
            {
                Ok(claimed) => claimed.map_err(|error| error.problem()),
                Err(_) => Err(Problem::new(503, "database-unavailable", "The database is slow")),
            };
            with(payload, claim).await
        }
        rpc::RENEW => with(payload, async |q: RenewRequest| tell(dispatch::renew(state, &q).await)).await,
        rpc::RELEASE => {
            with(payload, async |q: ReleaseRequest| tell(dispatch::release(state, &q).await)).await
        }
        rpc::SUBMIT => with(payload, async |q: SubmitRequest| tell(submit(state, q).await)).await,
        rpc::GET => with(payload, async |q: GetRequest| tell(get(state, &q).await)).await,
        rpc::ACTIVE => with(payload, async |q: ActiveRequest| tell(active(state, &q).await)).await,
        rpc::LAST => with(payload, async |q: LastRequest| tell(last(state, &q).await)).await,
        rpc::CANCEL => with(payload, async |q: CancelRequest| tell(cancel_all(state, &q).await)).await,
        rpc::STATS => {
            let count =
                async |q: StatsRequest| tell(stats::stats(state, q.window).await.map_err(Error::from));
            with(payload, count).await
        }
        rpc::RETRY => with(payload, async |q: RetryRequest| tell(retry_all(state, &q).await)).await,
        // A person who looks around sends nothing.
        rpc::SCHEMA if payload.is_empty() => with(b"{}", async |q: SchemaRequest| schema(&q)).await,
        rpc::SCHEMA => with(payload, async |q: SchemaRequest| schema(&q)).await,
        _ => unreachable!("only these endpoints are served"),
    };
    meter::rpc(name, result.is_ok(), begun.elapsed());
    let sent = match result {
        Ok(payload) => request.respond(Ok(payload.into())).await,
        Err(problem) => {
            if problem.status >= 500 {
                Span::current().fail(problem.status.to_string());
            }
            refuse(state, request, &problem).await
        }
    };
    if let Err(error) = sent {
        warn!(name, error = %error, "answer not sent");
    }
}

fn tell<T>(result: Result<T, Error>) -> Result<T, Problem> {
    result.map_err(|error| {
        let problem = error.problem();
        if problem.status >= 500 {
            warn!(error = &error as &dyn std::error::Error, "request failed");
        }
        problem
    })
}

/// Decodes a request, handles it, and encodes the answer.
async fn with<Q: DeserializeOwned, A: Serialize>(
    payload: &[u8],
    handle: impl AsyncFnOnce(Q) -> Result<A, Problem>,
) -> Result<Vec<u8>, Problem> {
    let request = serde_json::from_slice(payload).map_err(|error| {
        Problem::new(400, "not-json", "The request cannot be read").detail(error.to_string())
    })?;
    let answer = handle(request).await?;
    Ok(serde_json::to_vec(&answer).expect("an answer holds only what JSON can say"))
}

/// Micro services put the refusal into headers; the problem goes along as payload.
async fn refuse(
    state: &AppState,
    request: &Request,
    problem: &Problem,
) -> Result<(), async_nats::client::PublishError> {
    let Some(reply) = request.message.reply.clone() else { return Ok(()) };
    let mut headers = async_nats::HeaderMap::new();
    headers.insert(service::NATS_SERVICE_ERROR, problem.title.as_str());
    headers.insert(service::NATS_SERVICE_ERROR_CODE, problem.status.to_string().as_str());
    let payload = serde_json::to_vec(problem).expect("a problem holds only what JSON can say");
    state.nats.publish_with_headers(reply, headers, payload.into()).await
}

async fn submit(state: &AppState, request: SubmitRequest) -> Result<SubmitAnswer, Error> {
    check_count(request.jobs.len())?;
    let single = request.jobs.len() == 1;
    let place = |index| if single { "/job".to_owned() } else { format!("/jobs/{index}") };
    let bodies = request.jobs.into_iter().enumerate().map(|(index, body)| (place(index), body)).collect();
    let submission = Submission { owner: &request.owner, bodies, batch_id: None, idempotency_key: None };
    Ok(SubmitAnswer { jobs: accept::accept(state, submission).await?.jobs })
}

async fn get(state: &AppState, request: &GetRequest) -> Result<view::Job, Error> {
    let row = fresh::job(state, &request.owner, request.job_id).await?;
    view::job(state, &row).await
}

async fn active(state: &AppState, request: &ActiveRequest) -> Result<ActiveAnswer, Error> {
    let limit = request.limit.clamp(1, MAX_ACTIVE);
    let mut rows = jobs::active(state.db.read(), &request.owner, limit + 1).await?;
    let truncated = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    Ok(ActiveAnswer { jobs: rows.iter().map(jobs::JobRow::job_id).collect(), truncated })
}

async fn last(state: &AppState, request: &LastRequest) -> Result<LastAnswer, Error> {
    check_count(request.job_ids.len())?;
    let mut found = Vec::new();
    for id in &request.job_ids {
        let row = jobs::find(state.db.read(), &request.owner, *id).await?;
        found.extend(row.and_then(|row| last_message(*id, row)));
    }
    Ok(LastAnswer { jobs: found })
}

fn last_message(job_id: JobId, row: jobs::JobRow) -> Option<LastMessage> {
    let seq = EventSeq { attempt: u32::try_from(row.attempt).ok()?, seq: u32::try_from(row.seq).ok()? };
    let envelope = RawValue::from_string(row.message?).ok()?;
    Some(LastMessage { job_id, seq: seq.to_string(), envelope })
}

async fn cancel_all(state: &AppState, request: &CancelRequest) -> Result<CancelAnswer, Error> {
    check_count(request.job_ids.len())?;
    Ok(CancelAnswer { jobs: cancel::cancel_all(state, &request.owner, &request.job_ids).await? })
}

async fn retry_all(state: &AppState, request: &RetryRequest) -> Result<RetryAnswer, Error> {
    check_count(request.job_ids.len())?;
    Ok(RetryAnswer { jobs: retry::retry_all(state, &request.owner, &request.job_ids).await? })
}

fn schema(request: &SchemaRequest) -> Result<SchemaAnswer, Problem> {
    contract::schemas(request).ok_or_else(|| {
        let name = request.name.as_deref().unwrap_or_default();
        Problem::new(404, "not-found", "No such request").detail(format!("There is no request {name:?}."))
    })
}

fn check_count(jobs: usize) -> Result<(), Error> {
    if (1..=MAX_JOBS).contains(&jobs) {
        return Ok(());
    }
    Err(Error::BadParameter(format!("A request names 1 to {MAX_JOBS} jobs.")))
}
