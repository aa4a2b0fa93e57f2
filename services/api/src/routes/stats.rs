//! How the installation does.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use stepcast_shared::messages::{Stats, StatsWindow};
use stepcast_shared::problem::Problem;

use super::extract::{Params, parse};
use crate::error::Error;
use crate::state::AppState;
use crate::stats;

/// How far back.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StatsParams {
    /// `5m`, `15m`, `1h`, `6h`, `24h` or `7d`; `1h` unless said.
    window: Option<String>,
}

/// Look at throughput, waits and failures
///
/// Over all backends and each of them, and what waits now. Counted from the jobs that are kept, at most once a second.
#[utoipa::path(get, path = "/generation/stats", tag = "backends", params(StatsParams),
    responses((status = 200, body = Stats), (status = 400, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn get(state: State<AppState>, params: Params<StatsParams>) -> Result<Json<Stats>, Error> {
    let window = match params.0.window {
        Some(word) => parse(&word, "a window (5m, 15m, 1h, 6h, 24h, 7d)")?,
        None => StatsWindow::default(),
    };
    Ok(Json(stats::stats(&state, window).await?))
}
