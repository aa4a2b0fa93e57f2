//! Submitting: at once, or waiting for the result.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use object_store::ObjectStoreExt as _;
use serde::Deserialize;
use serde_json::Value;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::job::JobRequest;
use stepcast_shared::problem::Problem;
use stepcast_shared::rpc::Accepted;
use stepcast_shared::subjects;
use tokio::time::{Instant, timeout_at};

use super::extract::{Caller, JsonBody, Params};
use crate::accept::{self, Submission};
use crate::db::jobs;
use crate::error::Error;
use crate::state::AppState;
use crate::view::{self, Job};

/// How long a blocking request waits unless it says otherwise.
const DEFAULT_WAIT_SECONDS: f64 = 60.0;
/// How often the row is read while waiting, for messages that were lost.
const RECHECK: Duration = Duration::from_secs(1);
/// How often the row is read once the job is known to have ended: the projector is only just behind.
const RECHECK_ENDED: Duration = Duration::from_millis(10);

/// Query parameters of a submit, as the first system knew them.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SubmitParams {
    /// Keep the images on the SD.Next server too.
    save_images: Option<bool>,
    /// Accepted for older clients, and without effect: the request says itself what it is.
    #[serde(rename = "mode")]
    _mode: Option<String>,
    /// Ask for one backend by id.
    backend: Option<String>,
}

/// Query parameters of a blocking submit.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct GenerateParams {
    /// Longest wait, in seconds.
    wait: Option<f64>,
    /// `url` (default) or `base64`.
    #[serde(default)]
    return_format: ReturnFormat,
    /// Keep the images on the SD.Next server too.
    save_images: Option<bool>,
    /// Accepted for older clients, and without effect.
    #[serde(rename = "mode")]
    _mode: Option<String>,
    /// Ask for one backend by id.
    backend: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReturnFormat {
    #[default]
    Url,
    Base64,
}

/// Submit a job
///
/// Accepted means stored: the job survives any crash from here on.
#[utoipa::path(post, path = "/generation/queue-generation", tag = "generation", params(SubmitParams,
    ("Idempotency-Key" = Option<String>, Header, description = "Up to 128 characters; the same key and body give the first answer again for 24 h")),
    request_body = JobRequest,
    responses((status = 202, body = Accepted), (status = 400, body = Problem), (status = 409, body = Problem),
        (status = 413, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn queue(
    state: State<AppState>,
    caller: Caller,
    params: Params<SubmitParams>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, Error> {
    let accepted = submit(&state.0, &caller.0, params.0, &headers, body.0).await?;
    Ok(answer(&accepted))
}

/// Submit a job and wait for it
///
/// Answers with the job once it has ended, or as an accepted job once the wait is over.
#[utoipa::path(post, path = "/generation/generate", tag = "generation", params(GenerateParams,
    ("Idempotency-Key" = Option<String>, Header, description = "As for a plain submit")),
    request_body = JobRequest,
    responses((status = 200, body = Job), (status = 202, body = Accepted), (status = 400, body = Problem),
        (status = 409, body = Problem), (status = 422, body = Problem), (status = 429, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn generate(
    state: State<AppState>,
    caller: Caller,
    params: Params<GenerateParams>,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, Error> {
    let Params(GenerateParams { wait, return_format, save_images, backend, .. }) = params;
    let wait = wait.unwrap_or(DEFAULT_WAIT_SECONDS);
    let longest = state.limits.max_wait;
    let Some(wait) = Duration::try_from_secs_f64(wait).ok().filter(|wait| *wait <= longest) else {
        return Err(Error::BadParameter(format!("`wait` is 0 to {} seconds.", longest.as_secs())));
    };
    let deadline = Instant::now() + wait;
    let accepted =
        submit(&state.0, &caller.0, SubmitParams { save_images, backend, _mode: None }, &headers, body.0)
            .await?;
    match wait_for_end(&state.0, &caller.0, accepted.job_id, deadline).await? {
        None => Ok(answer(&accepted)),
        Some(mut job) => {
            if return_format == ReturnFormat::Base64 {
                inline_images(&state.0, &mut job).await?;
            }
            Ok(Json(job).into_response())
        }
    }
}

async fn submit(
    state: &AppState,
    owner: &Owner,
    params: SubmitParams,
    headers: &HeaderMap,
    mut body: Value,
) -> Result<Accepted, Error> {
    if let Value::Object(fields) = &mut body {
        if let Some(backend) = params.backend.filter(|name| !name.is_empty()) {
            fields.entry("backend").or_insert(backend.into());
        }
        if let Some(save) = params.save_images {
            let sdnext = fields.entry("sdnext").or_insert_with(|| Value::Object(serde_json::Map::new()));
            if let Value::Object(sdnext) = sdnext {
                sdnext.entry("save_images").or_insert(save.into());
            }
        }
    }
    let idempotency_key = idempotency_key(headers)?;
    let submission =
        Submission { owner, bodies: vec![(String::new(), body)], batch_id: None, idempotency_key };
    let mut accepted = accept::accept(state, submission).await?;
    Ok(accepted.jobs.remove(0))
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Error> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    match value.to_str() {
        Ok(key) if (1..=128).contains(&key.len()) => Ok(Some(key)),
        _ => Err(Error::BadParameter("An Idempotency-Key has 1 to 128 visible characters.".to_owned())),
    }
}

pub(super) fn answer(accepted: &Accepted) -> Response {
    (StatusCode::ACCEPTED, [(header::LOCATION, accepted.urls.this.clone())], Json(accepted)).into_response()
}

/// The job once it has ended; `None` if the deadline comes first.
async fn wait_for_end(
    state: &AppState,
    owner: &Owner,
    job_id: JobId,
    deadline: Instant,
) -> Result<Option<Job>, Error> {
    // Without the bus the row still tells, only a second later.
    let mut messages = state.nats.subscribe(subjects::all_of_job(owner, job_id)).await.ok();
    let mut recheck = RECHECK;
    loop {
        let row = jobs::find(state.db.read(), owner, job_id).await?;
        match row {
            Some(row) if row.status().is_terminal() => return view::job(state, &row).await.map(Some),
            Some(_) if Instant::now() < deadline && !state.stopping.is_cancelled() => {}
            _ => return Ok(None),
        }
        let next_look = deadline.min(Instant::now() + recheck);
        let ended = async {
            while let Some(subscriber) = &mut messages {
                match subscriber.next().await {
                    Some(message) if is_terminal(&message.subject) => return,
                    Some(_) => {}
                    None => messages = None,
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            ended = timeout_at(next_look, ended) => {
                if ended.is_ok() {
                    recheck = RECHECK_ENDED;
                }
            }
            () = state.stopping.cancelled() => {}
        }
    }
}

fn is_terminal(subject: &str) -> bool {
    subjects::parse_job(subject).is_some_and(|subject| subject.kind.is_terminal())
}

async fn inline_images(state: &AppState, job: &mut Job) -> Result<(), Error> {
    let mut images = Vec::with_capacity(job.images.len());
    for output in job.outputs.iter().filter(|output| !output.partial) {
        let bytes = state.images.get(&output.key.as_str().into()).await?.bytes().await?;
        images.push(STANDARD.encode(bytes));
    }
    job.images = images;
    Ok(())
}
