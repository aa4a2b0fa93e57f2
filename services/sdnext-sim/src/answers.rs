//! The recorded shapes of answers that several endpoints share.

use std::sync::LazyLock;

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};

/// Answers that never change, by path, and the lists that others are made of.
static FIXED: LazyLock<Map<String, Value>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("data/answers.json"))
        .expect("the file in the repository is well-formed")
});

/// A recorded answer or list; `null` where there is none.
pub(crate) fn fixed(name: &str) -> &'static Value {
    FIXED.get(name).unwrap_or(&Value::Null)
}

/// Paths that are answered from the recordings alone.
pub(crate) fn fixed_paths() -> impl Iterator<Item = &'static str> {
    FIXED.keys().map(String::as_str).filter(|name| name.starts_with('/'))
}

/// The sampler that `name` means, in its own spelling.
pub(crate) fn sampler(name: &str) -> Option<&'static str> {
    let names =
        fixed("samplers").as_array().into_iter().flatten().filter_map(|sampler| sampler["name"].as_str());
    ["Default"].into_iter().chain(names).find(|known| known.eq_ignore_ascii_case(name))
}

pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, axum::Json(body)).into_response()
}

/// What the server makes of an exception that means a status code.
pub(crate) fn http_exception(status: StatusCode, detail: &str) -> Response {
    let code = status.as_u16();
    json_response(
        status,
        &json!({
            "error": "HTTPException",
            "code": code,
            "detail": detail,
            "body": "",
            "errors": format!("{code}: {detail}"),
        }),
    )
}

/// What the server makes of any other exception.
pub(crate) fn exception(name: &str, message: &str) -> Response {
    json_response(
        StatusCode::INTERNAL_SERVER_ERROR,
        &json!({"error": name, "code": 500, "detail": "", "body": "", "errors": message}),
    )
}

/// What the framework says before any endpoint is reached.
pub(crate) fn framework(status: StatusCode, detail: &str) -> Response {
    json_response(status, &json!({"detail": detail}))
}
