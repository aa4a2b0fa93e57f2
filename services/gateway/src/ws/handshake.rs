//! The request that turns HTTP into WebSocket (RFC 6455 section 4.2).

use axum::body::Body;
use axum::http::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use axum::response::Response;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Why a request cannot become a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It does not ask for it.
    NotAsked,
    /// It asks for another version than 13.
    Version,
    /// Its key is missing or no key.
    Key,
}

/// Checks a request, and returns the answer that switches the protocol.
pub fn answer(method: &Method, version: Version, headers: &HeaderMap) -> Result<Response, Unfit> {
    // HTTP/2 has another way (RFC 8441), which no proxy of ours is asked to use.
    let asked = method == Method::GET
        && version == Version::HTTP_11
        && has_token(headers, &CONNECTION, "upgrade")
        && has_token(headers, &UPGRADE, "websocket");
    if !asked {
        return Err(Unfit::NotAsked);
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version.as_bytes() != b"13") {
        return Err(Unfit::Version);
    }
    // 16 bytes in base64 are 24 characters, the last two of which are padding.
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or(Unfit::Key)?.as_bytes();
    if key.len() != 24 || !key.ends_with(b"==") {
        return Err(Unfit::Key);
    }
    let accept = HeaderValue::from_str(&derive_accept_key(key)).expect("base64 fits into a header");
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// Whether a header that is a list has this token, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}
