//! Extractors whose refusals are problem+json.

use std::str::FromStr;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use stepcast_shared::ids::{BackendId, BatchId, JobId, Owner};

use crate::error::Error;
use crate::state::AppState;

/// Whose request it is: always the anonymous owner while there is no log-in.
pub struct Caller(pub Owner);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(_: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self(Owner::anonymous()))
    }
}

/// The whole body, within the limit.
pub struct Body(pub Bytes);

/// How much of a body over the limit is read and thrown away, in limits: a client that is still sending would take a
/// closed connection for an outage and never read why it was refused.
const DRAINED_LIMITS: usize = 4;

impl FromRequest<AppState> for Body {
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Error> {
        let limit = state.limits.max_body_bytes;
        let mut chunks = request.into_body().into_data_stream();
        let mut body = BytesMut::new();
        let mut received = 0_usize;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| Error::NotJson(error.to_string()))?;
            received = received.saturating_add(chunk.len());
            if received <= limit {
                body.extend_from_slice(&chunk);
            } else if received <= limit.saturating_mul(DRAINED_LIMITS) {
                body.clear();
            } else {
                break;
            }
        }
        if received > limit { Err(Error::TooLarge(limit)) } else { Ok(Self(body.freeze())) }
    }
}

/// A JSON body, whatever its `Content-Type`: the first system's clients were never strict about it.
pub struct JsonBody(pub Value);

impl FromRequest<AppState> for JsonBody {
    type Rejection = Error;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, Error> {
        let Body(bytes) = Body::from_request(request, state).await?;
        serde_json::from_slice(&bytes).map(Self).map_err(|error| Error::NotJson(error.to_string()))
    }
}

/// Query parameters.
pub struct Params<T>(pub T);

impl<T: DeserializeOwned, S: Sync + Send> FromRequestParts<S> for Params<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(params)) => Ok(Self(params)),
            Err(rejection) => Err(Error::BadParameter(rejection.body_text())),
        }
    }
}

/// A job's id in the path.
pub struct JobPath(pub JobId);

impl<S: Sync + Send> FromRequestParts<S> for JobPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(id) = path::<String, S>(parts, state).await?;
        Ok(Self(parse_id(&id)?))
    }
}

/// A job's id and the number of an image in the path.
pub struct ImagePath(pub JobId, pub usize);

impl<S: Sync + Send> FromRequestParts<S> for ImagePath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path((id, index)) = path::<(String, String), S>(parts, state).await?;
        let index = index
            .parse()
            .map_err(|_| Error::BadParameter(format!("`{index}` is not the number of an image.")))?;
        Ok(Self(parse_id(&id)?, index))
    }
}

/// A batch's id in the path.
pub struct BatchPath(pub BatchId);

impl<S: Sync + Send> FromRequestParts<S> for BatchPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(id) = path::<String, S>(parts, state).await?;
        Ok(Self(parse(&id, "the id of a batch (a UUID with hyphens)")?))
    }
}

/// A backend's id in the path.
pub struct BackendPath(pub BackendId);

impl<S: Sync + Send> FromRequestParts<S> for BackendPath {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let Path(id) = path::<String, S>(parts, state).await?;
        Ok(Self(parse(&id, "the id of a backend")?))
    }
}

async fn path<T: DeserializeOwned + Send, S: Sync + Send>(
    parts: &mut Parts,
    state: &S,
) -> Result<Path<T>, Error> {
    Path::<T>::from_request_parts(parts, state)
        .await
        .map_err(|rejection| Error::BadParameter(rejection.body_text()))
}

fn parse_id(text: &str) -> Result<JobId, Error> {
    parse(text, "the id of a job (a UUID with hyphens)")
}

/// Reads one parameter.
pub fn parse<T: FromStr>(text: &str, what: &str) -> Result<T, Error> {
    text.parse().map_err(|_| Error::BadParameter(format!("`{text}` is not {what}.")))
}
