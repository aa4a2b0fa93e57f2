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
const STYLES: &[&str] = &[
    include_str!("../../page/style.css"),
    include_str!("../../page/jobs.css"),
    include_str!("../../page/panels.css"),
    include_str!("../../page/small.css"),
];
/// In an order in which each finds what it extends; `main.js` joins them.
const SCRIPTS: &[&str] = &[
    include_str!("../../page/dom.js"),
    include_str!("../../page/format.js"),
    include_str!("../../page/http.js"),
    include_str!("../../page/place.js"),
    include_str!("../../page/poll.js"),
    include_str!("../../page/connection.js"),
    include_str!("../../page/recovery.js"),
    include_str!("../../page/topics.js"),
    include_str!("../../page/store.js"),
    include_str!("../../page/lookups.js"),
    include_str!("../../page/actions.js"),
    include_str!("../../page/liveness.js"),
    include_str!("../../page/dialogs.js"),
    include_str!("../../page/card.js"),
    include_str!("../../page/filters.js"),
    include_str!("../../page/jobs.js"),
    include_str!("../../page/queue.js"),
    include_str!("../../page/batch.js"),
    include_str!("../../page/fleet.js"),
    include_str!("../../page/backends.js"),
    include_str!("../../page/charts.js"),
    include_str!("../../page/statistics.js"),
    include_str!("../../page/timeline.js"),
    include_str!("../../page/detail-parts.js"),
    include_str!("../../page/detail.js"),
    include_str!("../../page/form.js"),
    include_str!("../../page/log.js"),
    include_str!("../../page/examples.js"),
    include_str!("../../page/theme.js"),
    include_str!("../../page/views.js"),
    include_str!("../../page/main.js"),
];

struct Page {
    html: String,
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let (style, script) = (STYLES.concat(), SCRIPTS.concat());
    let html = DOCUMENT.replacen("/*{{style}}*/", &style, 1).replacen("/*{{script}}*/", &script, 1);
    let hash = |text: &str| format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)));
    // Only what stands in this document runs, and no text can become markup; pictures may also be chosen files.
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; connect-src 'self'; img-src 'self' data: blob:; \
         base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
        hash(&script),
        hash(&style)
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
