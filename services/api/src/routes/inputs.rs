//! Uploading an input image once, to refer to it often.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use stepcast_shared::problem::{FieldError, Problem};

use super::extract::{Body, Caller};
use crate::accept;
use crate::error::Error;
use crate::images;
use crate::state::AppState;

/// A stored input image.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct StoredInput {
    /// Refer to it as `input:<input_id>`.
    input_id: String,
    content_type: String,
    width: i64,
    height: i64,
    bytes: i64,
}

/// Upload an input image
///
/// The body is the image itself: JPEG, PNG or WebP.
#[utoipa::path(post, path = "/generation/inputs", tag = "generation",
    request_body(content = Vec<u8>, content_type = "image/*"),
    responses((status = 201, body = StoredInput), (status = 413, body = Problem), (status = 422, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn upload(
    state: State<AppState>,
    caller: Caller,
    body: Body,
) -> Result<(StatusCode, Json<StoredInput>), Error> {
    let input = images::inspect(&body.0)
        .map_err(|error| Error::Invalid(vec![FieldError::new("", error.to_string())]))?;
    accept::keep_input(&state, &caller.0, &input, body.0).await?;
    let answer = StoredInput {
        input_id: input.id,
        content_type: input.content_type.to_owned(),
        width: input.width,
        height: input.height,
        bytes: input.bytes,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}
