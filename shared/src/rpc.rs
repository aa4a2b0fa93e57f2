//! Requests between services, on `stepcast.v1.rpc.*`, answered by any api replica.
//!
//! An answer's payload is the result itself; a refusal says so in the headers `Nats-Service-Error-Code` and
//! `Nats-Service-Error`, as NATS micro services do, with problem+json as payload.

use std::time::{Duration, Instant};

use async_nats::{Client, HeaderMap};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::{Instrument as _, Span, debug_span};

use crate::ids::{BackendId, ClaimToken, JobId, Owner, Pool};
use crate::job::JobRequest;
use crate::messages::{BackendMode, Envelope, JobMessage, StatsWindow, Status};
use crate::problem::Problem;
use crate::subjects;
use crate::trace::{self, SpanExt as _, TraceContext};

/// Name of the micro service.
pub const SERVICE_NAME: &str = "stepcast";

/// `claim`: an idle backend asks for work. Answered by [`ClaimAnswer`].
pub const CLAIM: &str = "claim";
/// `renew`: a poller says that it still runs its claims. Answered by [`Renewed`].
pub const RENEW: &str = "renew";
/// `release`: a poller gives a claim back that it has not started. Answered by `null`.
pub const RELEASE: &str = "release";
/// `submit`: [`SubmitRequest`], answered by [`SubmitAnswer`].
pub const SUBMIT: &str = "submit";
/// `get`: [`GetRequest`], answered by the job object.
pub const GET: &str = "get";
/// `active`: [`ActiveRequest`], answered by [`ActiveAnswer`].
pub const ACTIVE: &str = "active";
/// `last`: [`LastRequest`], answered by [`LastAnswer`].
pub const LAST: &str = "last";
/// `cancel`: [`CancelRequest`], answered by [`CancelAnswer`].
pub const CANCEL: &str = "cancel";
/// `stats`: [`StatsRequest`], answered by [`crate::messages::Stats`].
pub const STATS: &str = "stats";
/// `retry`: [`RetryRequest`], answered by [`RetryAnswer`].
pub const RETRY: &str = "retry";
/// `schema`: [`SchemaRequest`], answered by [`SchemaAnswer`].
pub const SCHEMA: &str = "schema";

/// What a backend says of itself when it asks for work.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ClaimRequest {
    /// Which backend.
    pub backend_id: BackendId,
    /// Revision of its lease at acquisition; older ones are refused.
    pub epoch: u64,
    /// What it may take.
    pub pools: Vec<Pool>,
    /// Checkpoint that is loaded, where known.
    pub loaded_model: Option<String>,
    /// Whether [`ClaimAnswer::HeldBack`] is understood; if not, nothing is said in its place.
    #[serde(default)]
    pub takes_modes: bool,
}

/// What an idle backend is told.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ClaimAnswer {
    /// There is a job for it.
    Work(Box<Claim>),
    /// Somebody wants it to be given none.
    HeldBack {
        /// Why.
        held_back: BackendMode,
    },
    /// There is none: `null`.
    Nothing,
}

/// A job, handed to one backend.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Claim {
    /// Which job.
    pub job_id: JobId,
    /// Whose.
    pub owner: Owner,
    /// The attempt that a start would be.
    pub attempt: u32,
    /// Proof of the claim.
    pub token: ClaimToken,
    /// Stream sequence of the job's last recorded event.
    pub last_event: u64,
    /// How long the claim lasts unless renewed.
    pub lease_seconds: u64,
    /// What to render.
    pub request: JobRequest,
    /// The request as sent, for the events.
    #[schemars(with = "Map<String, Value>")]
    pub params: Value,
    /// Seconds left until the job's deadline.
    pub deadline_in_seconds: Option<f64>,
    /// Where the job's trace goes on, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceContext>,
}

/// The claims that a poller still runs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RenewRequest {
    /// One per running job.
    pub claims: Vec<HeldClaim>,
}

/// A claim, named.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HeldClaim {
    /// Which job.
    pub job_id: JobId,
    /// Proof of the claim.
    pub token: ClaimToken,
}

/// What became of renewed claims, in the order they were named.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Renewed {
    /// One per claim.
    pub claims: Vec<RenewOutcome>,
    /// One per claim: seconds since its cancel was first asked for, on the database's clock, if it was.
    #[serde(default)]
    pub cancel_asked_ago: Vec<Option<f64>>,
}

/// What became of one renewed claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RenewOutcome {
    /// It goes on.
    Held,
    /// It goes on, and its job is to be cancelled.
    Cancel,
    /// It is somebody else's, or the job has ended.
    Lost,
}

/// A claim given back before its start.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReleaseRequest {
    /// Which claim.
    #[serde(flatten)]
    pub claim: HeldClaim,
    /// Why, for the log.
    pub reason: String,
}

/// Jobs to accept, as over HTTP.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SubmitRequest {
    /// Whose they will be.
    pub owner: Owner,
    /// The bodies, unchecked; all or none are accepted.
    #[schemars(with = "Vec<JobRequest>")]
    pub jobs: Vec<Value>,
}

/// The accepted jobs, in the order they were sent.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SubmitAnswer {
    /// One per body.
    pub jobs: Vec<Accepted>,
}

/// A job just accepted.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct Accepted {
    /// Its id.
    pub job_id: JobId,
    /// The same id, under the name that older clients read.
    pub delivery_id: JobId,
    /// `pending`.
    pub status: Status,
    /// Jobs ahead of it, itself included.
    pub position: u64,
    /// Where to go on.
    pub urls: AcceptedUrls,
}

/// Where to go on with an accepted job.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct AcceptedUrls {
    /// The job.
    #[serde(rename = "self")]
    pub this: String,
    /// To cancel it.
    pub cancel: String,
    /// To watch it.
    pub events: String,
}

impl AcceptedUrls {
    /// The addresses of a job, on the one origin.
    pub fn of(job_id: JobId) -> Self {
        Self {
            this: format!("/generation/jobs/{job_id}"),
            cancel: format!("/generation/jobs/{job_id}/cancel"),
            events: "/ws/progress".to_owned(),
        }
    }
}

/// One job, by id.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GetRequest {
    /// Whose; absent means the anonymous owner.
    #[serde(default = "Owner::anonymous")]
    pub owner: Owner,
    /// Which.
    pub job_id: JobId,
}

/// A page of an owner's active jobs.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ActiveRequest {
    /// Whose.
    #[serde(default = "Owner::anonymous")]
    pub owner: Owner,
    /// At most so many; up to 1,000.
    pub limit: u32,
}

/// An owner's active jobs, running first, then oldest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ActiveAnswer {
    /// Their ids.
    pub jobs: Vec<JobId>,
    /// Whether there are more.
    pub truncated: bool,
}

/// Jobs whose last lifecycle message is wanted, where the stream has lost it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LastRequest {
    /// Whose.
    #[serde(default = "Owner::anonymous")]
    pub owner: Owner,
    /// Which; up to 500.
    pub job_ids: Vec<JobId>,
}

/// The last lifecycle message of each known job.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LastAnswer {
    /// One per known job, in no order.
    pub jobs: Vec<LastMessage>,
}

/// One job's last lifecycle message.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct LastMessage {
    /// Which job.
    pub job_id: JobId,
    /// `<attempt>.<seq>`, as in the header `Stepcast-Seq`.
    pub seq: String,
    /// The envelope, ready to be sent.
    #[schemars(with = "Envelope<JobMessage>")]
    pub envelope: Box<serde_json::value::RawValue>,
}

/// Jobs to cancel.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CancelRequest {
    /// Whose.
    #[serde(default = "Owner::anonymous")]
    pub owner: Owner,
    /// Which.
    pub job_ids: Vec<JobId>,
}

/// What became of each, in the order they were named.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CancelAnswer {
    /// One per id.
    pub jobs: Vec<CancelOutcome>,
}

/// What became of one cancel.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct CancelOutcome {
    /// Which job.
    pub job_id: JobId,
    /// Whether it is, or will be, cancelled.
    pub success: bool,
    /// The job's status now; absent for an unknown job.
    pub status: Option<Status>,
    /// One sentence for a person.
    pub message: String,
}

/// How the installation does.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct StatsRequest {
    /// How far back; an hour unless said.
    #[serde(default)]
    pub window: StatsWindow,
}

/// Jobs to submit again.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RetryRequest {
    /// Whose.
    #[serde(default = "Owner::anonymous")]
    pub owner: Owner,
    /// Which; each time that one is named it becomes a new job.
    pub job_ids: Vec<JobId>,
}

/// What became of each, in the order they were named.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RetryAnswer {
    /// One per id.
    pub jobs: Vec<RetryOutcome>,
}

/// What became of one retry.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct RetryOutcome {
    /// The job that was named.
    pub job_id: JobId,
    /// Whether its request was accepted again.
    pub success: bool,
    /// One sentence for a person.
    pub message: String,
    /// The new job, if there is one.
    pub job: Option<Accepted>,
}

/// Whose schemas are wanted.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct SchemaRequest {
    /// Of one request; of all without it.
    pub name: Option<String>,
}

/// How these requests are asked and answered.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SchemaAnswer {
    /// One per request.
    pub endpoints: Vec<EndpointSchema>,
}

/// How one request is asked and answered.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EndpointSchema {
    /// The last token of its subject.
    pub name: String,
    /// Where it is asked.
    pub subject: String,
    /// What it is for.
    pub description: String,
    /// JSON Schema (2020-12) of the payload that is sent.
    #[schemars(with = "Map<String, Value>")]
    pub request: Value,
    /// JSON Schema (2020-12) of the payload that comes back, unless it is a refusal.
    #[schemars(with = "Map<String, Value>")]
    pub answer: Value,
}

/// Why a request had no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answered; trying again may help.
    #[error("no api answered")]
    Unavailable(#[source] async_nats::Error),
    /// It was refused.
    #[error("the request was refused: {}", .0.detail)]
    Refused(Box<Problem>),
    /// The answer could not be read.
    #[error("the answer could not be decoded")]
    Undecodable(#[source] serde_json::Error),
}

/// Sends a request and reads its answer, waiting at most `timeout`. Within a trace it is a span of that.
pub async fn call<Q: Serialize, A: DeserializeOwned>(
    client: &Client,
    name: &str,
    request: &Q,
    timeout: Duration,
) -> Result<A, Error> {
    let asked = Instant::now();
    let span = if trace::is_traced() { calling(name) } else { Span::none() };
    let answer = ask(client, name, request, timeout).instrument(span.clone()).await;
    let outcome = match &answer {
        Ok(_) => "ok",
        Err(Error::Unavailable(_)) => "unavailable",
        Err(Error::Refused(_)) => "refused",
        Err(Error::Undecodable(_)) => "undecodable",
    };
    if answer.is_err() {
        span.fail(outcome);
    }
    metrics::histogram!("stepcast_rpc_seconds", "name" => name.to_owned(), "outcome" => outcome)
        .record(asked.elapsed());
    answer
}

fn calling(name: &str) -> Span {
    debug_span!(
        "call",
        otel.kind = "client",
        otel.name = format!("{SERVICE_NAME}/{name}"),
        rpc.system = "nats",
        rpc.service = SERVICE_NAME,
        rpc.method = name,
    )
}

async fn ask<Q: Serialize, A: DeserializeOwned>(
    client: &Client,
    name: &str,
    request: &Q,
    timeout: Duration,
) -> Result<A, Error> {
    let payload = serde_json::to_vec(request).expect("requests hold only what JSON can say");
    let mut request = async_nats::Request::new().payload(payload.into()).timeout(Some(timeout));
    if let Some(context) = TraceContext::current() {
        let mut headers = HeaderMap::new();
        context.write(&mut headers);
        request = request.headers(headers);
    }
    let answer = client
        .send_request(subjects::rpc(name), request)
        .await
        .map_err(|error| Error::Unavailable(error.into()))?;
    let refused = answer
        .headers
        .as_ref()
        .and_then(|headers| headers.get(async_nats::service::NATS_SERVICE_ERROR_CODE).cloned());
    if let Some(code) = refused {
        let problem = serde_json::from_slice(&answer.payload).unwrap_or_else(|_| {
            Problem::new(code.as_str().parse().unwrap_or(500), "refused", "The request was refused")
        });
        return Err(Error::Refused(Box::new(problem)));
    }
    serde_json::from_slice(&answer.payload).map_err(Error::Undecodable)
}
