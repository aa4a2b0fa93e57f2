//! What the backends are doing, and giving them a rest.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::BackendState;
use stepcast_shared::problem::Problem;

use super::extract::BackendPath;
use crate::db::modes;
use crate::error::Error;
use crate::state::AppState;

/// Every backend that was heard of in the last 30 s.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct BackendList {
    backends: Vec<BackendView>,
}

/// A backend: what its poller says of it, and what was asked of it.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct BackendView {
    #[serde(flatten)]
    state: BackendState,
    /// Whether it is to be given no work.
    paused: bool,
}

/// Whether a backend is to be given no work.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct PauseAnswer {
    id: BackendId,
    paused: bool,
}

/// List backends
#[utoipa::path(get, path = "/generation/backends", tag = "backends",
    responses((status = 200, body = BackendList), (status = 503, body = Problem)))]
pub(super) async fn list(state: State<AppState>) -> Result<Json<BackendList>, Error> {
    let paused = modes::paused(state.db.read()).await?;
    let states = state.backends.list().into_iter();
    let backends =
        states.map(|state| BackendView { paused: paused.contains(state.id.as_str()), state }).collect();
    Ok(Json(BackendList { backends }))
}

/// Give a backend no more work
///
/// What it renders is finished. It stays paused until it is resumed, whatever restarts.
#[utoipa::path(post, path = "/generation/backends/{id}/pause", tag = "backends", params(("id" = String, Path)),
    responses((status = 200, body = PauseAnswer), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn pause(state: State<AppState>, path: BackendPath) -> Result<Json<PauseAnswer>, Error> {
    let mut transaction = state.db.begin().await?;
    modes::pause(&mut transaction, state.db.dialect, &path.0).await?;
    transaction.commit().await?;
    Ok(Json(PauseAnswer { id: path.0, paused: true }))
}

/// Give a backend work again
#[utoipa::path(post, path = "/generation/backends/{id}/resume", tag = "backends", params(("id" = String, Path)),
    responses((status = 200, body = PauseAnswer), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn resume(state: State<AppState>, path: BackendPath) -> Result<Json<PauseAnswer>, Error> {
    let mut transaction = state.db.begin().await?;
    modes::resume(&mut transaction, &path.0).await?;
    transaction.commit().await?;
    Ok(Json(PauseAnswer { id: path.0, paused: false }))
}
