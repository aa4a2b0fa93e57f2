//! The bytes of a job's images, as SD.Next made them.

use std::ops::Range;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use object_store::{GetOptions, GetRange, ObjectStore as _};
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::{Complete, Output};
use stepcast_shared::problem::Problem;

use super::extract::{Caller, ImagePath};
use crate::error::Error;
use crate::fresh;
use crate::state::AppState;

/// An image never changes under its address.
const FOREVER: &str = "private, max-age=31536000, immutable";

/// Get an image
///
/// `ETag`, immutable caching and single ranges (RFC 9110).
#[utoipa::path(get, path = "/generation/jobs/{id}/images/{n}", tag = "jobs",
    params(("id" = JobId, Path), ("n" = usize, Path, description = "From 0")),
    responses((status = 200, content_type = "image/*"), (status = 206, content_type = "image/*"), (status = 304),
        (status = 404, body = Problem), (status = 410, body = Problem), (status = 416, body = Problem)))]
pub(super) async fn get(
    state: State<AppState>,
    caller: Caller,
    path: ImagePath,
    headers: HeaderMap,
) -> Result<Response, Error> {
    let ImagePath(job_id, index) = path;
    let row = fresh::job(&state, &caller.0, job_id).await?;
    let result: Option<Complete> = row.result.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let output = result.and_then(|result| result.outputs.into_iter().nth(index));
    let output = output.ok_or(Error::ImageNotFound(job_id, index))?;

    let etag = etag(&output);
    let mut answer = HeaderMap::new();
    answer.insert(header::ETAG, etag.clone());
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static(FOREVER));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| matches(known, &etag)) {
        return Ok((StatusCode::NOT_MODIFIED, answer).into_response());
    }
    let range = match wanted_range(&headers, &etag, output.bytes) {
        Wanted::All => None,
        Wanted::Part(range) => Some(range),
        Wanted::Impossible => {
            answer.insert(header::CONTENT_RANGE, value(&format!("bytes */{}", output.bytes)));
            return Ok((answer, Error::RangeNotSatisfiable(output.bytes)).into_response());
        }
    };
    let options = GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
    let found = match state.images.get_opts(&output.key.as_str().into(), options).await {
        Ok(found) => found,
        Err(object_store::Error::NotFound { .. }) => return Err(Error::ImageNotFound(job_id, index)),
        Err(error) => return Err(error.into()),
    };
    answer.insert(header::CONTENT_TYPE, value(&output.content_type));
    answer.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let (status, length) = match range {
        None => (StatusCode::OK, output.bytes),
        Some(range) => {
            let text = format!("bytes {}-{}/{}", range.start, range.end - 1, output.bytes);
            answer.insert(header::CONTENT_RANGE, value(&text));
            (StatusCode::PARTIAL_CONTENT, range.end - range.start)
        }
    };
    answer.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok((status, answer, Body::from_stream(found.into_stream())).into_response())
}

/// A key is written once and holds the claim's token, so it names the bytes.
fn etag(output: &Output) -> HeaderValue {
    value(&format!("\"{}\"", output.key))
}

fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("keys and types hold visible characters only")
}

fn matches(known: &HeaderValue, etag: &HeaderValue) -> bool {
    let etag = etag.to_str().unwrap_or_default();
    known.to_str().is_ok_and(|known| {
        known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == etag || tag.trim() == "*")
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    All,
    Part(Range<u64>),
    Impossible,
}

/// Reads `Range` (RFC 9110, section 14): one range of bytes; several, or another unit, count as none.
fn wanted_range(headers: &HeaderMap, etag: &HeaderValue, size: u64) -> Wanted {
    if headers.get(header::IF_RANGE).is_some_and(|known| known != etag) {
        return Wanted::All;
    }
    let Some(text) = headers.get(header::RANGE).and_then(|range| range.to_str().ok()) else {
        return Wanted::All;
    };
    parse_range(text, size)
}

fn parse_range(text: &str, size: u64) -> Wanted {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Wanted::All;
    };
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..size,
        (Err(_), Ok(count)) if first.trim().is_empty() => size.saturating_sub(count)..size,
        _ => return Wanted::All,
    };
    if range.is_empty() { Wanted::Impossible } else { Wanted::Part(range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        for (text, wanted) in [
            ("bytes=0-9", Wanted::Part(0..10)),
            ("bytes=90-", Wanted::Part(90..100)),
            ("bytes=-10", Wanted::Part(90..100)),
            ("bytes=-1000", Wanted::Part(0..100)),
            ("bytes=50-1000", Wanted::Part(50..100)),
            ("bytes=100-", Wanted::Impossible),
            ("bytes=-0", Wanted::Impossible),
            ("bytes=9-0", Wanted::All),
            ("bytes=0-1,5-6", Wanted::All),
            ("lines=0-9", Wanted::All),
            ("bytes=", Wanted::All),
            ("bytes=-", Wanted::All),
        ] {
            assert_eq!(parse_range(text, 100), wanted, "{text}");
        }
    }
}
