//! Which pages may use a server that asks nobody to log in.

use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;

/// Whether a request may come from where it does.
///
/// Browsers send the origin of the page that asks, and send our cookies and reach our loopback from any page. So a
/// page of another origin is refused unless it was allowed; programs send no origin and are not concerned.
pub fn is_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let Ok(origin) = origin.to_str() else { return false };
    if allowed.iter().any(|it| it == "*" || it.trim_end_matches('/').eq_ignore_ascii_case(origin)) {
        return true;
    }
    let Some((scheme, origin)) = origin.split_once("://") else { return false };
    let default_port = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return false,
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let address = |text: &str| {
        let authority: Authority = text.parse().ok()?;
        Some((one_name(authority.host()), authority.port_u16().unwrap_or(default_port)))
    };
    address(origin).is_some_and(|origin| host.and_then(address) == Some(origin))
}

/// The names of this machine count as one.
fn one_name(host: &str) -> String {
    match host.to_ascii_lowercase().as_str() {
        "localhost" | "127.0.0.1" | "[::1]" => "localhost".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origin: Option<&str>, host: &str, list: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(ORIGIN, origin.parse().unwrap());
        }
        let list: Vec<String> = list.iter().map(|&it| it.to_owned()).collect();
        is_allowed(&headers, &list)
    }

    #[test]
    fn programs_and_our_own_page_may_connect() {
        assert!(allowed(None, "example.org", &[]));
        assert!(allowed(Some("http://example.org:8000"), "example.org:8000", &[]));
        assert!(allowed(Some("https://Example.org"), "example.org", &[]));
        assert!(allowed(Some("https://example.org"), "example.org:443", &[]));
        for (page, host) in [("localhost", "127.0.0.1"), ("127.0.0.1", "localhost"), ("[::1]", "localhost")] {
            assert!(allowed(Some(&format!("http://{page}:8000")), &format!("{host}:8000"), &[]));
        }
    }

    #[test]
    fn pages_of_other_origins_may_not_unless_listed() {
        for origin in [
            "http://evil.example",
            "http://localhost:3000",
            "http://example.org.evil.example:8000",
            "null",
            "file://",
            "nonsense",
        ] {
            assert!(!allowed(Some(origin), "localhost:8000", &["https://good.example"]), "{origin}");
        }
        assert!(allowed(Some("https://good.example"), "localhost:8000", &["https://good.example/"]));
        assert!(allowed(Some("null"), "localhost:8000", &["null"]));
        assert!(allowed(Some("http://any.example"), "localhost:8000", &["*"]));
    }
}
