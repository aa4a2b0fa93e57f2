//! Spans of requests that are served over HTTP.

use axum::extract::{MatchedPath, Request};
use axum::http::HeaderMap;
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument as _, Span, error_span, field};

use super::{SpanExt as _, TraceContext, is_on};

/// Serves a request within a span, which goes on from where the client says that it stands. A layer of routes, so that
/// it knows the route.
///
/// The span names the trace in log lines, however little is logged.
pub async fn serve(request: Request, next: Next) -> Response {
    if !is_on() {
        return next.run(request).await;
    }
    let span = span(&request).named();
    let response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.tell("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(status.as_str());
    }
    response
}

fn span(request: &Request) -> Span {
    let (method, headers) = (request.method(), request.headers());
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let name = route.map_or_else(|| method.to_string(), |route| format!("{method} {route}"));
    let span = error_span!("request", otel.kind = "server", otel.name = name, trace_id = field::Empty);
    let span = span.continues(TraceContext::read(|name| text(headers, name)).as_ref());
    span.tell("http.request.method", method.to_string());
    span.tell("url.path", request.uri().path().to_owned());
    span.tell("url.scheme", "http");
    if let Some(route) = route {
        span.tell("http.route", route.to_owned());
    }
    if let Some(host) = text(headers, "host") {
        let (address, port) = match host.rsplit_once(':') {
            Some((address, port)) => (address, port.parse::<u16>().ok()),
            None => (host, None),
        };
        span.tell("server.address", address.to_owned());
        if let Some(port) = port {
            span.tell("server.port", i64::from(port));
        }
    }
    if let Some(agent) = text(headers, "user-agent") {
        span.tell("user_agent.original", agent.to_owned());
    }
    span
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
