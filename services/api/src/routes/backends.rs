//! What the backends are doing.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use stepcast_shared::messages::BackendState;

use crate::state::AppState;

/// Every backend that was heard of in the last 30 s.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct BackendList {
    backends: Vec<BackendState>,
}

/// List backends
#[utoipa::path(get, path = "/generation/backends", tag = "backends", responses((status = 200, body = BackendList)))]
pub(super) async fn list(state: State<AppState>) -> Json<BackendList> {
    Json(BackendList { backends: state.backends.list() })
}
