//! The endpoints of A1111 and Forge, where they are not SD.Next's.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::{Map, Value, json};

use crate::answers::{fixed, json_response};
use crate::clock::Pace;
use crate::dialect::Dialect;
use crate::preview;
use crate::requests;
use crate::sim::Sim;
use crate::tasks::{Flags, Tasks};

type Sims = State<Arc<Sim>>;

/// What stands behind the API's credentials.
pub(crate) fn routes() -> Router<Arc<Sim>> {
    Router::new()
        .route("/sdapi/v1/progress", get(progress))
        .route("/sdapi/v1/interrupt", post(interrupt))
        .route("/sdapi/v1/skip", post(skip))
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/cmd-flags", get(flags))
        .route("/sdapi/v1/sd-models", get(models))
        .route("/sdapi/v1/samplers", get(async || json_response(StatusCode::OK, fixed("samplers"))))
}

/// What serves the server's own page, and asks for no credentials of the API.
pub(crate) fn internal() -> Router<Arc<Sim>> {
    Router::new()
        .route("/internal/progress", post(internal_progress))
        .route("/internal/pending-tasks", get(pending_tasks))
}

async fn progress(State(sim): Sims, Query(query): Query<HashMap<String, String>>) -> Response {
    sim.lock().counters.polls_seen += 1;
    let skip = query.get("skip_current_image").is_some_and(|skip| skip.eq_ignore_ascii_case("true"));
    let image = if skip { None } else { preview::current(&sim).await };
    let inner = sim.lock();
    let flags = Flags { interrupted: inner.state.interrupted, skipped: inner.state.skipped };
    let image = image.as_ref().map(|(text, ..)| text.as_ref());
    let mut body = inner.tasks.as_ref().map_or(Value::Null, |tasks| tasks.progress(flags, image));
    if inner.config.dialect == Dialect::Forge {
        // Forge names the field, and imports the value before there is one.
        body["current_task"] = Value::Null;
    }
    drop(inner);
    json_response(StatusCode::OK, &body)
}

async fn internal_progress(State(sim): Sims, body: Bytes) -> Response {
    sim.lock().counters.polls_seen += 1;
    let Ok(Value::Object(sent)) = serde_json::from_slice::<Value>(&body) else {
        let problems = requests::parse(requests::Kind::Txt2img, true, &body).err().unwrap_or(Value::Null);
        return json_response(StatusCode::UNPROCESSABLE_ENTITY, &problems);
    };
    let id = sent.get("id_task").and_then(Value::as_str);
    let known = sent.get("id_live_preview").and_then(Value::as_i64).unwrap_or(-1);
    let wanted = sent.get("live_preview").and_then(Value::as_bool).unwrap_or(true);
    let is_current = sim.lock().tasks.as_ref().is_some_and(|tasks| tasks.is_current(id));
    let image = if wanted && is_current { preview::current(&sim).await } else { None };
    let inner = sim.lock();
    let number = i64::from(inner.state.preview_id);
    let image = image.filter(|_| number != known);
    let image = image.map(|(text, _, kind)| (format!("data:{kind};base64,{text}"), number));
    let body = inner.tasks.as_ref().map_or(Value::Null, |tasks| tasks.internal(id, known, image));
    drop(inner);
    json_response(StatusCode::OK, &body)
}

async fn pending_tasks(State(sim): Sims) -> Response {
    let body = sim.lock().tasks.as_ref().map_or(Value::Null, Tasks::pending);
    json_response(StatusCode::OK, &body)
}

async fn interrupt(State(sim): Sims) -> Response {
    let mut inner = sim.lock();
    inner.counters.interrupts_received += 1;
    inner.state.interrupted = true;
    json_response(StatusCode::OK, &json!({}))
}

async fn skip(State(sim): Sims) -> Response {
    let mut inner = sim.lock();
    inner.counters.skips_received += 1;
    inner.state.skipped = true;
    json_response(StatusCode::OK, &Value::Null)
}

async fn options(State(sim): Sims) -> Response {
    let inner = sim.lock();
    let mut options = inner.options.clone();
    options.insert("sd_model_checkpoint".to_owned(), json!(inner.models.selected));
    json_response(StatusCode::OK, &Value::Object(options))
}

/// Unlike SD.Next's, a change of the checkpoint waits for the lock; an unknown one is an exception.
async fn set_options(State(sim): Sims, body: Bytes) -> Response {
    let dialect = sim.config().dialect;
    let Ok(Value::Object(sent)) = serde_json::from_slice::<Value>(&body) else {
        let problems = requests::parse(requests::Kind::Txt2img, true, &body).err().unwrap_or(Value::Null);
        return json_response(StatusCode::UNPROCESSABLE_ENTITY, &problems);
    };
    let name = sent.get("sd_model_checkpoint").and_then(Value::as_str);
    let found = name.map(|name| (name, sim.lock().models.find(name)));
    if let Some((name, None)) = &found {
        return dialect.exception("RuntimeError", &format!("model {name:?} not found"));
    }
    sim.lock().options.extend(sent.clone());
    if let Some((_, Some(title))) = found {
        let _turn = sim.turn.lock().await;
        sim.select(&title);
        sim.load(&title, &mut Pace::new()).await;
    }
    json_response(StatusCode::OK, &Value::Null)
}

async fn flags(State(sim): Sims) -> Response {
    json_response(StatusCode::OK, &sim.config().dialect.flags())
}

async fn models(State(sim): Sims) -> Response {
    json_response(StatusCode::OK, &sim.lock().models.list())
}

/// The schema, shortened to what tells a client whether tasks can be named.
pub(crate) async fn openapi() -> Response {
    let paths: Map<String, Value> = ["/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/progress"]
        .into_iter()
        .chain(["/sdapi/v1/options", "/internal/progress", "/internal/pending-tasks"])
        .map(|path| (path.to_owned(), json!({})))
        .collect();
    let field = json!({"type": "string", "title": "Force Task Id"});
    let body = json!({"properties": {"force_task_id": field}});
    let schemas = json!({"StableDiffusionProcessingTxt2Img": body, "StableDiffusionProcessingImg2Img": body});
    let info = json!({"title": "FastAPI", "version": "0.1.0"});
    json_response(
        StatusCode::OK,
        &json!({"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}),
    )
}
