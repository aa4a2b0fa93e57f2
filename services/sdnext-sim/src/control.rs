//! The way behind the scenes: `/sim/*` shows the truth and makes things go wrong. No client of SD.Next knows it.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::Config;
use crate::faults::Fault;
use crate::sim::Sim;

/// Changes to the configuration of a running server; what is absent stays.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Changes {
    step_time_ms: Option<u64>,
    load_time_ms: Option<u64>,
    decode_time_ms: Option<u64>,
    time_scale: Option<f64>,
    rate_limit: Option<u32>,
    /// `user:password`, or an empty text for none.
    auth: Option<String>,
    models: Option<Vec<String>>,
    previews: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Arming {
    fault: Fault,
    /// How many of the next jobs it strikes.
    #[serde(default = "one")]
    jobs: u32,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Armings {
    One(Arming),
    Many(Vec<Arming>),
}

fn one() -> u32 {
    1
}

pub(crate) fn router() -> Router<Arc<Sim>> {
    Router::new()
        .route("/sim/state", get(async |State(sim): State<Arc<Sim>>| Json(sim.truth())))
        .route("/sim/config", get(config).post(configure))
        .route("/sim/faults", post(arm).delete(clear))
        .route("/sim/release", post(release))
        .route("/sim/kill", post(kill))
}

async fn config(State(sim): State<Arc<Sim>>) -> Response {
    Json(shown(&sim.config())).into_response()
}

fn shown(config: &Config) -> Value {
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    json!({
        "step_time_ms": milliseconds(config.step_time),
        "load_time_ms": milliseconds(config.load_time),
        "decode_time_ms": milliseconds(config.decode_time),
        "time_scale": config.time_scale,
        "rate_limit": config.rate_limit,
        "models": config.models,
        "previews": config.previews,
    })
}

async fn configure(State(sim): State<Arc<Sim>>, body: Bytes) -> Response {
    let changes: Changes = match serde_json::from_slice(&body) {
        Ok(changes) => changes,
        Err(error) => return refused(&error),
    };
    let mut inner = sim.lock();
    let config = &mut inner.config;
    let set = |field: &mut Duration, value: Option<u64>| {
        if let Some(milliseconds) = value {
            *field = Duration::from_millis(milliseconds);
        }
    };
    set(&mut config.step_time, changes.step_time_ms);
    set(&mut config.load_time, changes.load_time_ms);
    set(&mut config.decode_time, changes.decode_time_ms);
    config.time_scale = changes.time_scale.unwrap_or(config.time_scale);
    config.rate_limit = changes.rate_limit.unwrap_or(config.rate_limit);
    if let Some(auth) = changes.auth {
        config.auth = Some(auth).filter(|auth| !auth.is_empty());
    }
    let shown = {
        if let Some(models) = &changes.models {
            config.models.clone_from(models);
        }
        if let Some(previews) = &changes.previews {
            config.previews.clone_from(previews);
        }
        shown(config)
    };
    if let Some(models) = changes.models {
        inner.models.known = models;
    }
    if let Some(previews) = changes.previews {
        inner.options.insert("show_progress_type".to_owned(), json!(previews));
    }
    Json(shown).into_response()
}

async fn arm(State(sim): State<Arc<Sim>>, body: Bytes) -> Response {
    let armings = match serde_json::from_slice(&body) {
        Ok(Armings::One(arming)) => vec![arming],
        Ok(Armings::Many(armings)) => armings,
        Err(error) => return refused(&error),
    };
    for Arming { fault, jobs } in armings {
        sim.arm(fault, jobs);
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn clear(State(sim): State<Arc<Sim>>) -> StatusCode {
    let mut inner = sim.lock();
    inner.faults.clear();
    inner.models.wedged = false;
    StatusCode::NO_CONTENT
}

async fn release(State(sim): State<Arc<Sim>>) -> StatusCode {
    sim.release.notify_waiters();
    StatusCode::NO_CONTENT
}

async fn kill(State(sim): State<Arc<Sim>>) -> StatusCode {
    sim.killed.cancel();
    StatusCode::NO_CONTENT
}

fn refused(error: &serde_json::Error) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"error": error.to_string()}))).into_response()
}
