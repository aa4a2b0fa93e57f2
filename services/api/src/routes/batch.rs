//! Several jobs at once: all or none.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use stepcast_shared::ids::{BatchId, Owner};
use stepcast_shared::messages::Status;
use stepcast_shared::problem::{FieldError, Problem};
use stepcast_shared::rpc::{Accepted, CancelOutcome};

use super::extract::{BatchPath, Caller, JsonBody};
use super::generate::idempotency_key;
use crate::accept::{self, Submission};
use crate::cancel;
use crate::db::jobs::{self, Filter, JobRow};
use crate::error::Error;
use crate::fresh;
use crate::state::AppState;

/// Most jobs of a batch.
const MAX_JOBS: usize = 500;

/// Jobs to accept together: either `jobs`, or one `job` with `seeds` or `prompts` (or both, each prompt with each
/// seed).
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[expect(
    dead_code,
    reason = "the schema of the body; it is read by hand, so that every fault has its pointer"
)]
pub(super) struct BatchRequest {
    #[schema(value_type = Option<Vec<Object>>)]
    jobs: Option<Vec<Value>>,
    #[schema(value_type = Option<Object>)]
    job: Option<Value>,
    seeds: Option<Vec<i64>>,
    prompts: Option<Vec<String>>,
}

/// The accepted jobs.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct BatchAnswer {
    batch_id: BatchId,
    jobs: Vec<Accepted>,
}

/// What became of each job.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct BatchCancelAnswer {
    /// Whether every job that had not ended is, or will be, cancelled.
    success: bool,
    message: String,
    jobs: Vec<CancelOutcome>,
}

/// Submit several jobs
///
/// All are accepted or none.
#[utoipa::path(post, path = "/generation/batch", tag = "generation",
    params(("Idempotency-Key" = Option<String>, Header, description = "As for a single submit")),
    request_body = BatchRequest,
    responses((status = 202, body = BatchAnswer), (status = 400, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn submit(
    state: State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<(StatusCode, Json<BatchAnswer>), Error> {
    let bodies = expand(body.0).map_err(Error::Invalid)?;
    accept_batch(&state, &caller, &headers, bodies).await
}

async fn accept_batch(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    bodies: Vec<(String, Value)>,
) -> Result<(StatusCode, Json<BatchAnswer>), Error> {
    let batch_id = BatchId::mint();
    let idempotency_key = idempotency_key(headers)?;
    let submission = Submission { owner: &caller.0, bodies, batch_id: Some(batch_id), idempotency_key };
    let accepted = accept::accept(state, submission).await?;
    Ok((
        StatusCode::ACCEPTED,
        Json(BatchAnswer { batch_id: accepted.batch_id.unwrap_or(batch_id), jobs: accepted.jobs }),
    ))
}

/// Cancel every job of a batch
#[utoipa::path(post, path = "/generation/batch/{id}/cancel", tag = "jobs", params(("id" = BatchId, Path)),
    responses((status = 200, body = BatchCancelAnswer), (status = 404, body = Problem)))]
pub(super) async fn cancel(
    state: State<AppState>,
    caller: Caller,
    path: BatchPath,
) -> Result<Json<BatchCancelAnswer>, Error> {
    let ids: Vec<_> = rows(&state, &caller.0, path.0).await?.iter().map(JobRow::job_id).collect();
    let jobs = cancel::cancel_all(&state, &caller.0, &ids).await?;
    let cancelled = jobs.iter().filter(|outcome| outcome.success).count();
    let message = format!("{cancelled} of {} jobs are being cancelled; the others had ended.", jobs.len());
    Ok(Json(BatchCancelAnswer { success: true, message, jobs }))
}

/// Submit the failed and cancelled jobs of a batch again
///
/// As a new batch, in the same order; all are accepted or none.
#[utoipa::path(post, path = "/generation/batch/{id}/retry", tag = "jobs",
    params(("id" = BatchId, Path), ("Idempotency-Key" = Option<String>, Header, description = "As for a single submit")),
    responses((status = 202, body = BatchAnswer), (status = 404, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem), (status = 429, body = Problem)))]
pub(super) async fn retry(
    state: State<AppState>,
    caller: Caller,
    path: BatchPath,
    headers: HeaderMap,
) -> Result<(StatusCode, Json<BatchAnswer>), Error> {
    let mut bodies = Vec::new();
    for row in rows(&state, &caller.0, path.0).await?.into_iter().rev() {
        // Whoever was told that a job has failed may be ahead of its row.
        let row = fresh::job(&state, &caller.0, row.job_id()).await?;
        if matches!(row.status(), Status::Failed | Status::Cancelled) {
            let body = serde_json::from_str(&row.params).unwrap_or_default();
            bodies.push((format!("/jobs/{}", bodies.len()), body));
        }
    }
    if bodies.is_empty() {
        return Err(Error::NothingToRetry(path.0));
    }
    accept_batch(&state, &caller, &headers, bodies).await
}

async fn rows(state: &AppState, owner: &Owner, batch_id: BatchId) -> Result<Vec<JobRow>, Error> {
    let limit = u32::try_from(MAX_JOBS).expect("a small number");
    let filter = Filter { batch_id: Some(batch_id), limit, ..Filter::default() };
    let rows = jobs::list(state.db.read(), owner, &filter).await?;
    if rows.is_empty() { Err(Error::BatchNotFound(batch_id)) } else { Ok(rows) }
}

/// The bodies of a batch, each with its place.
fn expand(body: Value) -> Result<Vec<(String, Value)>, Vec<FieldError>> {
    let fault = |pointer: &str, detail: &str| Err(vec![FieldError::new(pointer, detail)]);
    let Value::Object(mut fields) = body else { return fault("", "this must be an object") };
    let (jobs, job) = (fields.remove("jobs"), fields.remove("job"));
    let bodies = match (jobs, job) {
        (Some(Value::Array(jobs)), None) => {
            jobs.into_iter().enumerate().map(|(index, job)| (format!("/jobs/{index}"), job)).collect()
        }
        (Some(_), None) => return fault("/jobs", "this must be a list"),
        (None, Some(Value::Object(job))) => vary(&job, &mut fields)?,
        (None, Some(_)) => return fault("/job", "this must be an object"),
        _ => return fault("", "a batch has either `jobs`, or one `job` with `seeds` or `prompts`"),
    };
    if let Some(name) = fields.keys().next() {
        return fault(&format!("/{name}"), "there is no such field");
    }
    if bodies.is_empty() || bodies.len() > MAX_JOBS {
        let detail = format!("a batch has 1 to {MAX_JOBS} jobs, not {}", bodies.len());
        return Err(vec![FieldError::new("", detail)]);
    }
    Ok(bodies)
}

/// One job with each prompt and each seed.
fn vary(
    job: &Map<String, Value>,
    fields: &mut Map<String, Value>,
) -> Result<Vec<(String, Value)>, Vec<FieldError>> {
    let mut list = |name: &str| match fields.remove(name) {
        None => Ok(vec![None]),
        Some(Value::Array(values)) => Ok(values.into_iter().map(Some).collect()),
        Some(_) => Err(vec![FieldError::new(format!("/{name}"), "this must be a list")]),
    };
    let (prompts, seeds): (Vec<Option<Value>>, Vec<Option<Value>>) = (list("prompts")?, list("seeds")?);
    if prompts.len().saturating_mul(seeds.len()) > MAX_JOBS {
        return Err(vec![FieldError::new("", format!("a batch has at most {MAX_JOBS} jobs"))]);
    }
    let mut bodies = Vec::new();
    for prompt in &prompts {
        for seed in &seeds {
            let mut body = job.clone();
            for (name, value) in [("prompt", prompt), ("seed", seed)] {
                if let Some(value) = value {
                    body.insert(name.to_owned(), value.clone());
                }
            }
            bodies.push(("/job".to_owned(), Value::Object(body)));
        }
    }
    Ok(bodies)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_job_is_varied_by_prompts_and_seeds() {
        let bodies = expand(json!({"job": {"steps": 3}, "prompts": ["a", "b"], "seeds": [1, 2]})).unwrap();
        let bodies: Vec<Value> = bodies.into_iter().map(|(_, body)| body).collect();
        assert_eq!(
            Value::from(bodies),
            json!([
                {"steps": 3, "prompt": "a", "seed": 1},
                {"steps": 3, "prompt": "a", "seed": 2},
                {"steps": 3, "prompt": "b", "seed": 1},
                {"steps": 3, "prompt": "b", "seed": 2},
            ])
        );
    }

    #[test]
    fn what_is_no_batch_is_refused_where_it_is_wrong() {
        for (body, pointer) in [
            (json!([]), ""),
            (json!({}), ""),
            (json!({"jobs": []}), ""),
            (json!({"jobs": {}}), "/jobs"),
            (json!({"job": []}), "/job"),
            (json!({"job": {}, "seeds": 1}), "/seeds"),
            (json!({"jobs": [{}], "size": 2}), "/size"),
            (json!({"jobs": [{}], "job": {}}), ""),
            (json!({"job": {}, "seeds": (0..501).collect::<Vec<_>>()}), ""),
        ] {
            assert_eq!(expand(body.clone()).unwrap_err()[0].pointer, pointer, "{body}");
        }
    }
}
