//! The OpenAPI document, generated from the handlers, and a page to read it.

use axum::Router;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_swagger_ui::SwaggerUi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Stepcast",
        description = "A durable job queue and live progress in front of SD.Next image-generation servers. \
            Live messages are on the WebSocket `/ws/progress`.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0")
    ),
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
    SwaggerUi::new("/docs").url("/openapi.json", document).into()
}
