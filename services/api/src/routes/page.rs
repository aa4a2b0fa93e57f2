//! The page for people: one document, assembled from its parts, with no outside asset.

use std::sync::LazyLock;

use axum::Router;
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

const DOCUMENT: &str = include_str!("../../page/index.html");
const STYLE: &str = include_str!("../../page/style.css");
/// In the order that the document's head asks for.
const SCRIPTS: &[&str] = &[
    include_str!("../../page/dom.js"),
    include_str!("../../page/format.js"),
    include_str!("../../page/http.js"),
    include_str!("../../page/connection.js"),
    include_str!("../../page/store.js"),
    include_str!("../../page/card.js"),
    include_str!("../../page/jobs.js"),
    include_str!("../../page/form.js"),
    include_str!("../../page/log.js"),
    include_str!("../../page/backends.js"),
    include_str!("../../page/examples.js"),
    include_str!("../../page/theme.js"),
    include_str!("../../page/main.js"),
];

struct Page {
    html: String,
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let script = SCRIPTS.concat();
    let html = DOCUMENT.replacen("/*{{style}}*/", STYLE, 1).replacen("/*{{script}}*/", &script, 1);
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    // Only what stands in this document runs; pictures may also be chosen files and previews.
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src 'self' data: blob:; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
        hash(&script),
        hash(STYLE)
    );
    Page { html, policy }
});

pub(super) fn router() -> Router {
    // The second address is where the first system had its page.
    Router::new().route("/", get(page)).route("/websocket_test.html", get(page))
}

async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, PAGE.policy.as_str()),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, Html(PAGE.html.as_str()))
}
