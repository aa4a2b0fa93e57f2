//! The endpoints that are answered at once: progress, flags, models, options, files.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::SizeAbove;

use crate::answers::{fixed, fixed_paths, framework, http_exception, json_response};
use crate::clock::Pace;
use crate::sim::Sim;
use crate::{control, gate, generate, preview, requests, webui};

type Sims = State<Arc<Sim>>;
type Parameters = Query<HashMap<String, String>>;

/// Smaller answers are not compressed.
const COMPRESSED_ABOVE: u64 = 500;

fn sdnext() -> Router<Arc<Sim>> {
    let mut routes = Router::new()
        .route("/sdapi/v1/progress", get(progress))
        .route("/sdapi/v1/status", get(status))
        .route("/internal/progress", post(internal_progress))
        .route("/sdapi/v1/interrupt", post(interrupt))
        .route("/sdapi/v1/skip", post(skip))
        .route("/sdapi/v1/history", get(history))
        .route("/sdapi/v1/checkpoint", get(checkpoint).post(set_checkpoint))
        .route("/sdapi/v1/reload-checkpoint", post(reload_checkpoint))
        .route("/sdapi/v1/unload-checkpoint", post(unload_checkpoint))
        .route("/sdapi/v1/sd-models", get(models))
        .route("/sdapi/v1/samplers", get(async || json_response(StatusCode::OK, fixed("samplers"))))
        .route("/sdapi/v1/options", get(options).post(set_options))
        .route("/sdapi/v1/log", get(log))
        .route("/sdapi/v1/file", get(file));
    for path in fixed_paths() {
        routes = routes.route(path, get(async move || json_response(StatusCode::OK, fixed(path))));
    }
    routes
}

pub(crate) fn router(sim: &Arc<Sim>) -> Router {
    let has_tasks = sim.config().dialect.has_tasks();
    let quick = if has_tasks { webui::routes() } else { sdnext() }
        .route_layer(from_fn_with_state(sim.clone(), gate::worker))
        .route_layer(from_fn_with_state(sim.clone(), gate::limit));
    let renders = Router::new()
        .route("/sdapi/v1/txt2img", post(generate::txt2img))
        .route("/sdapi/v1/img2img", post(generate::img2img));
    quick
        .merge(renders)
        .route_layer(from_fn_with_state(sim.clone(), gate::credentials))
        .merge(if has_tasks { webui::internal() } else { Router::new() })
        .route("/openapi.json", if has_tasks { get(webui::openapi) } else { get(openapi) })
        .merge(control::router())
        .fallback(async || framework(StatusCode::NOT_FOUND, "Not Found"))
        .method_not_allowed_fallback(async || framework(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed"))
        .layer(CompressionLayer::new().compress_when(SizeAbove::new(COMPRESSED_ABOVE)))
        .layer(from_fn(gate::headers))
        .with_state(sim.clone())
}

async fn progress(State(sim): Sims, Query(query): Parameters) -> Response {
    sim.lock().counters.polls_seen += 1;
    let skip = query.get("skip_current_image").is_some_and(|value| {
        matches!(value.to_ascii_lowercase().as_str(), "true" | "1" | "yes" | "on" | "t" | "y")
    });
    let image = if skip { None } else { preview::current(&sim).await };
    let inner = sim.lock();
    // What was drawn may be of a stage that is over by now.
    let image = image.filter(|(_, drawn, _)| !drawn || inner.state.step() > 0);
    let body = inner.state.progress(image.as_ref().map(|(text, _, _)| text.as_ref()));
    drop(inner);
    json_response(StatusCode::OK, &body)
}

async fn status(State(sim): Sims) -> Response {
    let mut inner = sim.lock();
    inner.counters.polls_seen += 1;
    json_response(StatusCode::OK, &inner.state.status())
}

async fn internal_progress(State(sim): Sims) -> Response {
    sim.lock().counters.polls_seen += 1;
    let image = preview::current(&sim).await.filter(|(_, drawn, _)| *drawn);
    let uri = image.map(|(text, _, media_type)| format!("data:{media_type};base64,{text}"));
    let body = sim.lock().state.internal(uri.as_deref());
    json_response(StatusCode::OK, &body)
}

async fn interrupt(State(sim): Sims) -> StatusCode {
    let mut inner = sim.lock();
    inner.counters.interrupts_received += 1;
    inner.state.interrupted = true;
    StatusCode::NO_CONTENT
}

async fn skip(State(sim): Sims) -> StatusCode {
    let mut inner = sim.lock();
    inner.counters.skips_received += 1;
    inner.state.skipped = true;
    StatusCode::NO_CONTENT
}

async fn history(State(sim): Sims, Query(query): Parameters) -> Response {
    let rows = sim.lock().state.history.rows(query.get("id").map(String::as_str));
    axum::Json(rows).into_response()
}

async fn checkpoint(State(sim): Sims) -> Response {
    json_response(StatusCode::OK, &sim.lock().models.checkpoint())
}

/// Takes no lock: during a job this takes the job's model away.
async fn set_checkpoint(State(sim): Sims, Query(query): Parameters) -> Response {
    let Some(name) = query.get("sd_model_checkpoint") else {
        let problems = requests::missing_query("sd_model_checkpoint");
        return json_response(StatusCode::UNPROCESSABLE_ENTITY, &problems);
    };
    let ok = load_or_unload(&sim, name).await;
    json_response(StatusCode::OK, &json!({"ok": ok}))
}

/// Loads the model that `name` means; where there is none, the loaded one goes all the same.
async fn load_or_unload(sim: &Arc<Sim>, name: &str) -> bool {
    let found = sim.lock().models.find(name);
    let mut pace = Pace::new();
    if let Some(title) = found {
        sim.select(&title);
        sim.load(&title, &mut pace).await;
        return true;
    }
    sim.select(name);
    unload(sim).await;
    false
}

async fn unload(sim: &Arc<Sim>) {
    let time = {
        let mut inner = sim.lock();
        inner.models.loaded = None;
        inner.models.generation += 1;
        inner.config.scaled(inner.config.load_time)
    };
    tokio::time::sleep(time).await;
}

async fn unload_checkpoint(State(sim): Sims) -> StatusCode {
    unload(&sim).await;
    StatusCode::NO_CONTENT
}

/// Does nothing where a model is loaded, unless forced; forced, it recovers a wedged server.
async fn reload_checkpoint(State(sim): Sims, Query(query): Parameters) -> StatusCode {
    let force = query.get("force").is_some_and(|force| force == "true" || force == "1");
    let wanted = {
        let inner = sim.lock();
        let wanted = inner.models.find(&inner.models.selected);
        wanted.filter(|_| force || inner.models.loaded.is_none())
    };
    if let Some(title) = wanted {
        sim.load(&title, &mut Pace::new()).await;
        if force {
            sim.lock().models.wedged = false;
        }
    }
    StatusCode::NO_CONTENT
}

async fn models(State(sim): Sims) -> Response {
    json_response(StatusCode::OK, &sim.lock().models.list())
}

async fn options(State(sim): Sims) -> Response {
    let inner = sim.lock();
    let mut options = inner.options.clone();
    options.insert("sd_model_checkpoint".to_owned(), json!(inner.models.selected));
    options.insert("server_rate_limit".to_owned(), json!(inner.config.rate_limit));
    json_response(StatusCode::OK, &Value::Object(options))
}

async fn set_options(State(sim): Sims, body: Bytes) -> Response {
    let Ok(Value::Object(sent)) = serde_json::from_slice::<Value>(&body) else {
        let problems = requests::parse(requests::Kind::Txt2img, true, &body).err().unwrap_or(Value::Null);
        return json_response(StatusCode::UNPROCESSABLE_ENTITY, &problems);
    };
    let updated: Vec<Value> = sent
        .iter()
        .map(|(name, value)| {
            let mut inner = sim.lock();
            let known = inner.options.contains_key(name);
            if known {
                inner.options.insert(name.clone(), value.clone());
            }
            if let ("server_rate_limit", Some(limit)) = (name.as_str(), value.as_u64()) {
                inner.config.rate_limit = u32::try_from(limit).unwrap_or(u32::MAX);
            }
            Value::Object(Map::from_iter([(name.clone(), json!(known))]))
        })
        .collect();
    if let Some(name) = sent.get("sd_model_checkpoint").and_then(Value::as_str) {
        load_or_unload(&sim, name).await;
    }
    json_response(StatusCode::OK, &json!({"updated": updated}))
}

async fn log(State(sim): Sims, Query(query): Parameters) -> Response {
    let count = query.get("lines").and_then(|lines| lines.parse().ok()).unwrap_or(100);
    let mut inner = sim.lock();
    let lines = inner.log.last(count);
    if query.get("clear").is_some_and(|clear| clear == "true") {
        inner.log.clear();
    }
    json_response(StatusCode::OK, &json!(lines))
}

async fn file(State(sim): Sims, Query(query): Parameters) -> Response {
    let Some(name) = query.get("file") else {
        return json_response(StatusCode::UNPROCESSABLE_ENTITY, &requests::missing_query("file"));
    };
    let found = sim.lock().files.iter().find(|(path, _)| path == name).map(|(_, bytes)| bytes.clone());
    match found {
        Some(bytes) => {
            let media_type = [(header::CONTENT_TYPE, "application/octet-stream")];
            (media_type, bytes.as_ref().clone()).into_response()
        }
        None => http_exception(StatusCode::NOT_FOUND, &format!("file not found: {name}")),
    }
}

/// Only what tells a client which kind of server this is; it needs no credentials.
async fn openapi() -> Response {
    let paths: Map<String, Value> = ["/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/progress"]
        .into_iter()
        .chain(["/sdapi/v1/status", "/sdapi/v1/history", "/internal/progress"])
        .chain(fixed_paths())
        .map(|path| (path.to_owned(), json!({})))
        .collect();
    let info = json!({"title": "SD.Next", "description": "SD.Next", "version": "0.0.unknown"});
    json_response(StatusCode::OK, &json!({"openapi": "3.1.0", "info": info, "paths": paths}))
}
