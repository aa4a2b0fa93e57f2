//! HTTP: a handler extracts, calls one function, converts.

mod backends;
mod batch;
mod docs;
mod extract;
mod generate;
mod guard;
mod images;
mod inputs;
mod jobs;
mod page;
mod stats;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use stepcast_shared::problem::Problem;
use stepcast_shared::trace;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::db::silence::Silence;
use crate::error::Error;
use crate::meter;
use crate::state::AppState;

/// Everything that api serves.
pub fn router(state: AppState) -> Router {
    let allowed = state.allow_origins.clone();
    let cors = guard::cors(&allowed);
    let silence = state.silence.clone();
    let (router, document) = described();
    router
        .with_state(state)
        .layer(axum::middleware::from_fn_with_state(silence, unless_the_database_is_silent))
        .merge(docs::router(document))
        .merge(page::router())
        .method_not_allowed_fallback(method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(allowed, guard::own_pages_only))
        .layer(cors)
        .layer(CompressionLayer::new())
        .layer(axum::middleware::from_fn(meter::http))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(axum::middleware::from_fn(trace::http::serve))
}

/// What clients use, and its description.
pub(crate) fn described() -> (Router<AppState>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(docs::document())
        .routes(routes!(generate::queue))
        .routes(routes!(generate::generate))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::active))
        .routes(routes!(batch::submit))
        .routes(routes!(batch::cancel))
        .routes(routes!(batch::retry))
        .routes(routes!(jobs::get, jobs::delete, jobs::patch))
        .routes(routes!(jobs::retry))
        .routes(routes!(jobs::progress))
        .routes(routes!(jobs::cancel))
        .routes(routes!(images::get))
        .routes(routes!(inputs::upload))
        .routes(routes!(backends::list))
        .routes(routes!(backends::pause))
        .routes(routes!(backends::drain))
        .routes(routes!(backends::resume))
        .routes(routes!(stats::get))
        .split_for_parts();
    docs::describe_answers(&mut document);
    (router, document)
}

/// Answers a request whose database has gone without a word, rather than to keep it until the kernel gives up.
async fn unless_the_database_is_silent(
    State(silence): State<Silence>,
    request: Request,
    next: Next,
) -> Response {
    tokio::select! {
        answer = next.run(request) => answer,
        () = silence.is_too_long() => Error::Database(sqlx::Error::PoolTimedOut).into_response(),
    }
}

async fn method_not_allowed(method: axum::http::Method, uri: axum::http::Uri) -> Problem {
    Problem::new(405, "method-not-allowed", "Method not allowed")
        .detail(format!("{} does not take {method}.", uri.path()))
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR.as_u16(), "internal", "Our own fault");
    problem.into_response()
}
