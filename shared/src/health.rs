//! `/health/live`, `/health/ready` and `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;

/// What a service needs in order to serve, by name.
///
/// Whoever notices a change says so; the probe only reads, so that it costs nothing and cannot hang.
#[derive(Clone, Debug, Default)]
pub struct ReadyCheck(Arc<Mutex<BTreeMap<&'static str, Result<(), String>>>>);

impl ReadyCheck {
    /// A check that is ready until something is said.
    pub fn new() -> Self {
        Self::default()
    }

    /// Says that `part` is well, or what is wrong with it.
    pub fn set(&self, part: &'static str, state: Result<(), String>) {
        self.lock().insert(part, state);
    }

    /// Takes over what another service of the same process reports.
    #[must_use]
    pub fn merge(all: &[ReadyCheck]) -> MergedCheck {
        MergedCheck(all.to_vec().into())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Result<(), String>>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

/// The checks of all services of a process.
#[derive(Clone, Debug)]
pub struct MergedCheck(Arc<[ReadyCheck]>);

impl MergedCheck {
    /// Whether every part of every service is well.
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(|check| check.lock().values().all(Result::is_ok))
    }

    fn report(&self) -> Report {
        let mut parts = BTreeMap::new();
        for check in self.0.iter() {
            for (part, state) in check.lock().iter() {
                let state = state.as_ref().map_or_else(Clone::clone, |()| "ok".to_owned());
                parts.insert(*part, state);
            }
        }
        Report { status: if self.is_ready() { "ready" } else { "not ready" }, parts }
    }
}

#[derive(Serialize)]
struct Report {
    status: &'static str,
    parts: BTreeMap<&'static str, String>,
}

/// The routes that every process serves once.
pub fn router(check: MergedCheck, metrics: Option<PrometheusHandle>) -> Router {
    let router = Router::new()
        .route("/health/live", get(|| async { "ok" }))
        .route("/health/ready", get(ready))
        .with_state(check);
    match metrics {
        Some(handle) => router.route("/metrics", get(move || std::future::ready(handle.render()))),
        None => router,
    }
}

async fn ready(State(check): State<MergedCheck>) -> impl IntoResponse {
    let report = check.report();
    let status = if check.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(report))
}
