//! What the backends are doing, giving them a rest, and emptying them.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{BackendCondition, BackendMode, BackendState};
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
    #[serde(flatten)]
    mode: Mode,
}

/// What was asked of a backend, and whether that is done.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct ModeAnswer {
    id: BackendId,
    #[serde(flatten)]
    mode: Mode,
}

/// What was asked of a backend. At most one of the first two is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub(super) struct Mode {
    /// Whether it has a rest.
    paused: bool,
    /// Whether it is to be emptied.
    draining: bool,
    /// Whether it is: it holds no job of ours, and is given none.
    drained: bool,
}

/// List backends
#[utoipa::path(get, path = "/generation/backends", tag = "backends",
    responses((status = 200, body = BackendList), (status = 503, body = Problem)))]
pub(super) async fn list(state: State<AppState>) -> Result<Json<BackendList>, Error> {
    let modes = Modes::read(&state).await?;
    let states = state.backends.list().into_iter();
    let backends = states.map(|state| BackendView { mode: modes.of(&state.id), state }).collect();
    Ok(Json(BackendList { backends }))
}

/// Give a backend no more work
///
/// What it renders is finished. It stays paused until it is resumed, whatever restarts.
#[utoipa::path(post, path = "/generation/backends/{id}/pause", tag = "backends", params(("id" = String, Path)),
    responses((status = 200, body = ModeAnswer), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 503, body = Problem)))]
pub(super) async fn pause(state: State<AppState>, path: BackendPath) -> Result<Json<ModeAnswer>, Error> {
    change(&state, path.0, Some(BackendMode::Paused)).await
}

/// Empty a backend
///
/// As paused, and it says when it is empty: then `drained` is true, its own `state` becomes `drained` if it is idle,
/// and it can be shut down. It stays so until it is resumed, whatever restarts.
#[utoipa::path(post, path = "/generation/backends/{id}/drain", tag = "backends", params(("id" = String, Path)),
    responses((status = 200, body = ModeAnswer), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 503, body = Problem)))]
pub(super) async fn drain(state: State<AppState>, path: BackendPath) -> Result<Json<ModeAnswer>, Error> {
    change(&state, path.0, Some(BackendMode::Draining)).await
}

/// Give a backend work again
///
/// Whether it was paused or drained.
#[utoipa::path(post, path = "/generation/backends/{id}/resume", tag = "backends", params(("id" = String, Path)),
    responses((status = 200, body = ModeAnswer), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 503, body = Problem)))]
pub(super) async fn resume(state: State<AppState>, path: BackendPath) -> Result<Json<ModeAnswer>, Error> {
    change(&state, path.0, None).await
}

/// Changes what is wanted of a backend that has been heard of at some time.
async fn change(
    state: &AppState,
    id: BackendId,
    mode: Option<BackendMode>,
) -> Result<Json<ModeAnswer>, Error> {
    let mut known = modes::known(state.db.read()).await?;
    known.extend(state.backends.list().into_iter().map(|backend| backend.id.to_string()));
    if !known.contains(id.as_str()) {
        return Err(Error::BackendNotFound(id, known.into_iter().collect()));
    }
    let mut transaction = state.db.begin().await?;
    match mode {
        Some(mode) => modes::set(&mut transaction, state.db.dialect, &id, mode).await?,
        None => modes::resume(&mut transaction, &id).await?,
    }
    transaction.commit().await?;
    let mode = Modes::read(state).await?.of(&id);
    Ok(Json(ModeAnswer { id, mode }))
}

/// What is wanted of every backend, and what they hold.
struct Modes {
    modes: BTreeMap<String, BackendMode>,
    working: BTreeSet<String>,
}

impl Modes {
    async fn read(state: &AppState) -> sqlx::Result<Self> {
        let modes = modes::modes(state.db.read()).await?;
        let mut working = BTreeSet::new();
        // In this order: what is granted after a mode was read is granted to others.
        if modes.values().any(|mode| *mode == BackendMode::Draining) {
            working = modes::holding(state.db.read()).await?;
            // A render whose poller was given up runs on until the poller hears of that.
            let busy = state.backends.list().into_iter().filter(|it| it.state == BackendCondition::Busy);
            working.extend(busy.map(|backend| backend.id.to_string()));
        }
        Ok(Self { modes, working })
    }

    fn of(&self, backend: &BackendId) -> Mode {
        let mode = self.modes.get(backend.as_str());
        let draining = mode == Some(&BackendMode::Draining);
        Mode {
            paused: mode == Some(&BackendMode::Paused),
            draining,
            drained: draining && !self.working.contains(backend.as_str()),
        }
    }
}
