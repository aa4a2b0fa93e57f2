//! Stepcast's HTTP API, from a client's side; what it refuses is told field by field.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{RequestBuilder, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stepcast_shared::address::without_credentials;
use stepcast_shared::problem::Problem;
use url::{Host, Url};

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for a whole answer; uploads and images take their time.
const ANSWER: Duration = Duration::from_mins(2);
/// How much of an answer that is not ours is shown.
const MAX_SHOWN: usize = 200;

/// Why a request had no result.
#[derive(Debug)]
pub enum Error {
    /// Nobody answers there.
    Unreachable {
        /// The address.
        server: String,
        /// What happened.
        reason: String,
    },
    /// It was refused.
    Refused(Box<Problem>),
    /// What answered is not Stepcast, or not one that this client understands.
    NotStepcast {
        /// The address.
        url: String,
        /// What it answered.
        answer: String,
    },
}

impl std::error::Error for Error {}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreachable { server, reason } => write!(
                f,
                "no Stepcast answers at {server} ({reason}). Start one with `stepcast up`, or name another with --server"
            ),
            Self::Refused(problem) => f.write_str(&sentence(problem)),
            Self::NotStepcast { url, answer } => {
                write!(f, "{url} does not answer as Stepcast does: {answer}")
            }
        }
    }
}

/// A problem for a person: what, and where in the body.
fn sentence(problem: &Problem) -> String {
    let mut text = if problem.errors.is_empty() { &problem.detail } else { &problem.title }.clone();
    for error in &problem.errors {
        let field = error.pointer.trim_start_matches('/');
        let field = if field.is_empty() { "the request" } else { field };
        let _ = write!(text, "\n  {field}: {}", error.detail);
    }
    if let Some(seconds) = problem.retry_after {
        let _ = write!(text, "\n  try again in {seconds} s");
    }
    text
}

/// An error as a script reads it: a problem as the server sent it, any other in the same shape.
pub fn error_json(error: &anyhow::Error) -> Value {
    match error.downcast_ref() {
        Some(Error::Refused(problem)) => json!(problem),
        Some(Error::Unreachable { .. }) => {
            json!({ "type": "/problems/unreachable", "detail": error.to_string() })
        }
        _ => json!({ "type": "/problems/client", "detail": format!("{error:#}") }),
    }
}

/// A Stepcast to talk to.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// A client of the Stepcast at `base`, which ends in `/`.
    pub fn new(base: &Url) -> anyhow::Result<Self> {
        let mut http = reqwest::Client::builder().connect_timeout(CONNECT).timeout(ANSWER);
        if is_this_machine(base) {
            // A proxy for the world outside knows nothing of this machine's own loopback.
            http = http.no_proxy();
        }
        Ok(Self { http: http.build()?, base: base.clone() })
    }

    /// What it asks with.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// The address of a path, with or without a slash at its front.
    pub fn url(&self, path: &str) -> Url {
        // A path that cannot be joined is the server's own fault, and then the base is what it gets asked for.
        self.base.join(path.trim_start_matches('/')).unwrap_or_else(|_| self.base.clone())
    }

    /// The address of the WebSocket.
    pub fn socket_url(&self) -> Url {
        let mut url = self.url("ws/progress");
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        url.set_scheme(scheme).expect("http and ws are schemes of the same kind");
        url
    }

    /// Reads JSON.
    pub async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, Error> {
        decode(&url, &self.send(self.http.get(url.clone())).await?)
    }

    /// Reads bytes.
    pub async fn bytes(&self, url: Url) -> Result<Bytes, Error> {
        self.send(self.http.get(url)).await
    }

    /// Sends JSON, or nothing, and reads JSON.
    pub async fn post<T: DeserializeOwned>(
        &self,
        url: Url,
        body: Option<&Value>,
        idempotency_key: Option<&str>,
    ) -> Result<T, Error> {
        let mut request = self.http.post(url.clone());
        if let Some(body) = body {
            request = request.json(body);
        }
        if let Some(key) = idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        decode(&url, &self.send(request).await?)
    }

    /// Sends a file and reads JSON.
    pub async fn upload<T: DeserializeOwned>(&self, url: Url, body: Vec<u8>) -> Result<T, Error> {
        decode(&url, &self.send(self.http.post(url.clone()).body(body)).await?)
    }

    async fn send(&self, request: RequestBuilder) -> Result<Bytes, Error> {
        let away = |error: reqwest::Error| Error::Unreachable {
            server: without_credentials(self.base.as_str()),
            reason: innermost(&error),
        };
        let answer = request.send().await.map_err(away)?;
        let (status, url) = (answer.status(), without_credentials(answer.url().as_str()));
        let body = answer.bytes().await.map_err(away)?;
        if status.is_success() { Ok(body) } else { Err(refusal(status, url, &body)) }
    }
}

fn refusal(status: StatusCode, url: String, body: &[u8]) -> Error {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => Error::Refused(Box::new(problem)),
        Err(_) => Error::NotStepcast { url, answer: format!("{status} {}", shortened(body)) },
    }
}

fn decode<T: DeserializeOwned>(url: &Url, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body)
        .map_err(|_| Error::NotStepcast { url: without_credentials(url.as_str()), answer: shortened(body) })
}

fn shortened(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// The cause of all causes: `connection refused` says more than what was wrapped around it.
pub fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn is_this_machine(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use stepcast_shared::problem::FieldError;

    use super::*;

    #[test]
    fn a_problem_is_told_field_by_field() {
        let problem = Problem::new(422, "invalid-request", "The request cannot be accepted")
            .detail("/steps: too many")
            .errors(vec![FieldError::new("/steps", "too many"), FieldError::new("", "odd")]);
        let text = Error::Refused(Box::new(problem)).to_string();
        assert_eq!(text, "The request cannot be accepted\n  steps: too many\n  the request: odd");
    }

    #[test]
    fn what_is_no_problem_document_is_shown_shortened() {
        let page = format!("<html>{}</html>", "x ".repeat(500));
        let error = refusal(StatusCode::BAD_GATEWAY, "http://x/".to_owned(), page.as_bytes()).to_string();
        assert!(error.contains("502") && error.ends_with('…'), "{error}");
        assert!(error.len() < 400);
    }

    #[test]
    fn paths_are_joined_below_the_base() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::new(&Url::parse("https://host/below/").unwrap()).unwrap();
        assert_eq!(client.url("/generation/jobs").as_str(), "https://host/below/generation/jobs");
        assert_eq!(client.socket_url().as_str(), "wss://host/below/ws/progress");
    }
}
