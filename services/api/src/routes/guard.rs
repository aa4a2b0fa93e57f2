//! Keeping pages of other origins from using a server that asks nobody to log in.
//!
//! A browser lets any page send a plain POST to this machine; only the answer would be kept from it, and by then the
//! job is queued. So a request that changes something and comes from a page of another origin is refused.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use stepcast_shared::origin;
use stepcast_shared::problem::Problem;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Refuses changes asked for by pages that are not allowed.
pub(super) async fn own_pages_only(
    State(allowed): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Response {
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    if changes && !origin::is_allowed(request.headers(), &allowed) {
        return Problem::new(403, "origin-not-allowed", "This page may not do that")
            .detail("The page comes from another origin; its address can be allowed with --allow-origin.")
            .into_response();
    }
    next.run(request).await
}

/// Lets the allowed pages read what they asked for.
pub(super) fn cors(allowed: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = allowed.iter().filter_map(|origin| origin.parse().ok()).collect();
    let any = allowed.iter().any(|origin| origin == "*");
    let methods = [Method::GET, Method::POST, Method::PATCH, Method::DELETE];
    CorsLayer::new()
        .allow_origin(if any { AllowOrigin::any() } else { AllowOrigin::list(origins) })
        .allow_methods(methods)
        .allow_headers(AllowHeaders::list([header::CONTENT_TYPE, "idempotency-key".parse().expect("a name")]))
}
