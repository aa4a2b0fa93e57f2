//! The request that turns HTTP into WebSocket (RFC 6455 section 4.2).

use axum::body::Body;
use axum::http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, TRANSFER_ENCODING, UPGRADE,
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
    /// Its key is missing, comes twice, or is no key.
    Key,
    /// It does not say which host it means, or says it twice.
    Host,
    /// It has a body, whose bytes could not be told from frames.
    Body,
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
    if single(headers, &SEC_WEBSOCKET_VERSION) != Some(b"13") {
        return Err(Unfit::Version);
    }
    let key = single(headers, &SEC_WEBSOCKET_KEY).filter(|key| is_key(key)).ok_or(Unfit::Key)?;
    if single(headers, &HOST).is_none() {
        return Err(Unfit::Host);
    }
    let length = headers.get(CONTENT_LENGTH).map_or(&b"0"[..], HeaderValue::as_bytes);
    if length != b"0" || headers.contains_key(TRANSFER_ENCODING) {
        return Err(Unfit::Body);
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

/// 16 bytes in base64 are 24 characters, the last two of which are padding.
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.strip_suffix(b"==").is_some_and(|digits| digits.len() == 22 && digits.iter().all(is_digit))
}

/// The value of a header that may come only once, if it does.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    values.next().is_none().then(|| value.as_bytes())
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
