//! Looking at jobs, and ending them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::TryStreamExt as _;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde::{Deserialize, Serialize};
use stepcast_shared::ids::JobId;
use stepcast_shared::job::Priority;
use stepcast_shared::messages::Status;
use stepcast_shared::problem::{FieldError, Problem};
use stepcast_shared::rpc::{Accepted, CancelOutcome};
use tracing::warn;

use super::extract::{Caller, JobPath, JsonBody, Params, parse};
use super::generate;
use crate::cancel as cancelling;
use crate::db::jobs::{self, Filter, JobRow};
use crate::error::Error;
use crate::fresh;
use crate::retry;
use crate::state::AppState;
use crate::view::{self, Job};

/// Jobs of a page unless it says otherwise.
const DEFAULT_LIMIT: u32 = 50;
/// Most jobs of a page.
const MAX_LIMIT: u32 = 500;
/// Most jobs of an active list.
const MAX_ACTIVE: u32 = 1_000;

/// What to list.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// `pending`, `running`, `completed`, `failed` or `cancelled`.
    status: Option<String>,
    /// Jobs that were submitted together.
    batch_id: Option<String>,
    /// The client's own mark.
    label: Option<String>,
    /// The backend that their last attempt ran on.
    backend: Option<String>,
    /// The checkpoint that they ask for.
    model: Option<String>,
    /// 1 to 500; 50 unless said.
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A page of jobs, newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct JobPage {
    jobs: Vec<Job>,
    /// For the next page; absent on the last.
    next_cursor: Option<JobId>,
}

/// Jobs in no page.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct JobList {
    jobs: Vec<Job>,
}

/// What can be changed of a waiting job.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PatchRequest {
    priority: Priority,
}

/// Whether a cancel will have its way.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct CancelAnswer {
    success: bool,
    status: Option<Status>,
    message: String,
}

/// List jobs, newest first
#[utoipa::path(get, path = "/generation/jobs", tag = "jobs", params(ListParams),
    responses((status = 200, body = JobPage), (status = 400, body = Problem)))]
pub(super) async fn list(
    state: State<AppState>,
    caller: Caller,
    params: Params<ListParams>,
) -> Result<Json<JobPage>, Error> {
    let filter = filter(params.0)?;
    // One more than asked for tells whether there is a next page.
    let more = Filter { limit: filter.limit + 1, ..filter.clone() };
    let mut rows = jobs::list(state.db.read(), &caller.0, &more).await?;
    let has_next = rows.len() > filter.limit as usize;
    rows.truncate(filter.limit as usize);
    let next_cursor = rows.last().filter(|_| has_next).map(JobRow::job_id);
    Ok(Json(JobPage { jobs: view::jobs(&state, &rows).await?, next_cursor }))
}

fn filter(params: ListParams) -> Result<Filter, Error> {
    let ListParams { status, batch_id, label, backend, model, limit, cursor } = params;
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Error::BadParameter(format!("`limit` is 1 to {MAX_LIMIT}.")));
    }
    let words = "a status (pending, running, completed, failed, cancelled)";
    Ok(Filter {
        status: status.map(|word| parse(&word, words)).transpose()?,
        batch_id: batch_id.map(|id| parse(&id, "the id of a batch")).transpose()?,
        label: label.filter(|text| is_storable(text)),
        backend: backend.filter(|text| is_storable(text)),
        model: model.filter(|text| is_storable(text)),
        before: cursor.map(|id| parse(&id, "a cursor of an earlier page")).transpose()?,
        limit,
    })
}

/// Whether a text could stand in a row: PostgreSQL takes no zero.
fn is_storable(text: &str) -> bool {
    !text.contains('\0')
}

/// List waiting and running jobs
///
/// Running first, then in the order in which they wait.
#[utoipa::path(get, path = "/generation/jobs/active", tag = "jobs", responses((status = 200, body = JobList)))]
pub(super) async fn active(state: State<AppState>, caller: Caller) -> Result<Json<JobList>, Error> {
    let rows = jobs::active(state.db.read(), &caller.0, MAX_ACTIVE).await?;
    Ok(Json(JobList { jobs: view::jobs(&state, &rows).await? }))
}

/// Get a job
#[utoipa::path(get, path = "/generation/jobs/{id}", tag = "jobs", params(("id" = JobId, Path)),
    responses((status = 200, body = Job), (status = 400, body = Problem), (status = 404, body = Problem), (status = 410, body = Problem)))]
pub(super) async fn get(state: State<AppState>, caller: Caller, path: JobPath) -> Result<Json<Job>, Error> {
    let row = fresh::job(&state, &caller.0, path.0).await?;
    Ok(Json(view::job(&state, &row).await?))
}

/// Get a job, at the first system's address
#[utoipa::path(get, path = "/generation/progress/{id}", tag = "jobs", params(("id" = JobId, Path)),
    responses((status = 200, body = Job), (status = 400, body = Problem), (status = 404, body = Problem), (status = 410, body = Problem)))]
pub(super) async fn progress(
    state: State<AppState>,
    caller: Caller,
    path: JobPath,
) -> Result<Json<Job>, Error> {
    get(state, caller, path).await
}

/// Cancel a job
///
/// A waiting job ends at once; a running one is stopped as soon as SD.Next lets go of it.
#[utoipa::path(post, path = "/generation/jobs/{id}/cancel", tag = "jobs", params(("id" = JobId, Path)),
    responses((status = 200, body = CancelAnswer), (status = 404, body = Problem), (status = 410, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn cancel(
    state: State<AppState>,
    caller: Caller,
    path: JobPath,
) -> Result<Json<CancelAnswer>, Error> {
    let CancelOutcome { success, status, message, .. } =
        cancelling::cancel(&state, &caller.0, path.0).await?;
    Ok(Json(CancelAnswer { success, status, message }))
}

/// Submit a job again
///
/// A new job with the same request, whatever became of the first.
#[utoipa::path(post, path = "/generation/jobs/{id}/retry", tag = "jobs", params(("id" = JobId, Path)),
    responses((status = 202, body = Accepted), (status = 404, body = Problem), (status = 410, body = Problem), (status = 422, body = Problem),
        (status = 429, body = Problem)))]
pub(super) async fn retry(state: State<AppState>, caller: Caller, path: JobPath) -> Result<Response, Error> {
    Ok(generate::answer(&retry::retry(&state, &caller.0, path.0).await?))
}

/// Change the priority of a waiting job
#[utoipa::path(patch, path = "/generation/jobs/{id}", tag = "jobs", params(("id" = JobId, Path)),
    request_body = PatchRequest,
    responses((status = 200, body = Job), (status = 404, body = Problem), (status = 410, body = Problem), (status = 409, body = Problem),
        (status = 422, body = Problem)))]
pub(super) async fn patch(
    state: State<AppState>,
    caller: Caller,
    path: JobPath,
    body: JsonBody,
) -> Result<Json<Job>, Error> {
    let patch: PatchRequest = serde_json::from_value(body.0)
        .map_err(|error| Error::Invalid(vec![FieldError::new("/priority", error.to_string())]))?;
    let mut transaction = state.db.begin().await?;
    let moved = jobs::set_priority(&mut transaction, &caller.0, path.0, patch.priority).await?;
    transaction.commit().await?;
    let row = fresh::job(&state, &caller.0, path.0).await?;
    if !moved {
        return Err(Error::WrongState(row.status()));
    }
    Ok(Json(view::job(&state, &row).await?))
}

/// Delete an ended job with its images
#[utoipa::path(delete, path = "/generation/jobs/{id}", tag = "jobs", params(("id" = JobId, Path)),
    responses((status = 204), (status = 404, body = Problem), (status = 410, body = Problem), (status = 409, body = Problem)))]
pub(super) async fn delete(
    state: State<AppState>,
    caller: Caller,
    path: JobPath,
) -> Result<StatusCode, Error> {
    let row = fresh::job(&state, &caller.0, path.0).await?;
    if !row.status().is_terminal() {
        return Err(Error::WrongState(row.status()));
    }
    let mut transaction = state.db.begin().await?;
    jobs::delete_terminal(&mut transaction, &caller.0, path.0).await?;
    transaction.commit().await?;
    // The row decides: images that stay behind can no longer be reached, and cost only their space.
    if let Err(error) = delete_images(&*state.images, path.0).await {
        warn!(job_id = %path.0, error = %error, "images of a deleted job left behind");
    }
    Ok(StatusCode::NO_CONTENT)
}

async fn delete_images(store: &dyn ObjectStore, job_id: JobId) -> object_store::Result<()> {
    let prefix = job_id.to_string().into();
    let images: Vec<_> = store.list(Some(&prefix)).try_collect().await?;
    for image in images {
        store.delete(&image.location).await?;
    }
    Ok(())
}
