//! The OpenAPI document, generated from the handlers, and a page to read it; the AsyncAPI document beside it.

use axum::http::{StatusCode, header};
use axum::routing::get;
use axum::{Router, response};
use utoipa::OpenApi;
use utoipa::openapi::{OpenApi as Document, RefOr};
use utoipa_swagger_ui::SwaggerUi;

use crate::contract;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Stepcast",
        description = "A durable job queue and live progress in front of SD.Next image-generation servers. \
            Live messages are on the WebSocket `/ws/progress`, which `/asyncapi.json` describes.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
    components(schemas(super::generate::ReturnFormat)),
    tags(
        (name = "generation", description = "Submitting jobs"),
        (name = "jobs", description = "Looking at jobs and ending them"),
        (name = "backends", description = "The servers that do the work")
    )
)]
struct Description;

pub(super) fn document() -> Document {
    Description::openapi()
}

pub(super) fn router(document: Document) -> Router {
    let pages: Router = SwaggerUi::new("/docs").url("/openapi.json", document).into();
    pages.route("/asyncapi.json", get(asyncapi))
}

/// Says what each answer is: OpenAPI asks for a description, and what a status says in words is enough of one.
pub(super) fn describe_answers(document: &mut Document) {
    let operations = document.paths.paths.values_mut().flat_map(|path| {
        [&mut path.get, &mut path.post, &mut path.put, &mut path.patch, &mut path.delete]
            .into_iter()
            .flatten()
    });
    for (status, answer) in operations.flat_map(|operation| &mut operation.responses.responses) {
        let RefOr::T(answer) = answer else { continue };
        if answer.description.is_empty() {
            let status = status.parse::<StatusCode>().ok();
            let words = status.and_then(|it| it.canonical_reason());
            answer.description = String::from(words.unwrap_or("The answer"));
        }
    }
}

async fn asyncapi() -> impl response::IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], contract::ASYNCAPI)
}
