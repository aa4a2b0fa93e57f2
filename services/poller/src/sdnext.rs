//! What is asked of a server, over its `/sdapi/v1`: as SD.Next has it, which the other dialects largely share.
//!
//! Nothing here draws conclusions; that is for the tracker and the verifier.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use stepcast_shared::trace::{self, SpanExt as _};
use tokio::time::Instant;
use tracing::{Instrument as _, Span, debug_span};
use url::Url;

use crate::a1111::Family;
use crate::config::BackendSpec;
use crate::dialect::Dialect;
use crate::sample::Sample;
use crate::verifier::{Answer, TransportKind};

/// Below the 5 s after which the server closes an idle connection.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for an answer that costs the server no work. During sampling the slowest of a hundred takes 40 ms.
const QUICK: Duration = Duration::from_secs(5);
/// How long it is known which checkpoint is loaded: less than the time between two looks at an idle server.
const MODEL_STANDS: Duration = Duration::from_millis(1500);
/// Longest wait for a checkpoint to load.
const RELOAD: Duration = Duration::from_mins(3);
/// Log lines that are searched after a failure.
const LOG_LINES: u32 = 100;

/// One server.
#[derive(Clone, Debug)]
pub struct SdNext {
    client: Client,
    base: Url,
    credentials: Option<(String, SecretString)>,
    render_timeout: Duration,
    /// What the newest probe found.
    family: Family,
    /// Whether that still holds: a server that was away may come back as another.
    probed: bool,
    /// Title of the loaded checkpoint, and when it was asked for.
    model: Option<(String, Instant)>,
}

/// Why a server cannot be used now.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It does not answer.
    #[error("SD.Next does not answer: {0}")]
    Silent(String),
    /// It wants other credentials.
    #[error("SD.Next refuses our user name and password")]
    Unauthorized,
    /// It answers, and not as SD.Next does.
    #[error("SD.Next answers with HTTP {0}")]
    Odd(u16),
    /// It has had too many requests from here.
    #[error("SD.Next is refusing requests for a while: its rate limit is reached")]
    RateLimited,
}

#[derive(Deserialize)]
struct Checkpoint {
    class: Option<String>,
    title: Option<String>,
}

/// What a look at the server showed.
#[derive(Clone, Debug)]
pub struct Look {
    /// What it is doing.
    pub sample: Sample,
    /// Title of the loaded checkpoint; `None` if none is loaded.
    pub model: Option<String>,
}

impl Look {
    /// Whether what was answered says nothing of a server's work.
    pub fn is_unreadable(&self) -> bool {
        self.sample == Sample::Missed
    }
}

impl SdNext {
    /// A client of one server.
    pub fn new(spec: &BackendSpec, render_timeout: Duration) -> anyhow::Result<Self> {
        let client = Client::builder()
            .user_agent(concat!("stepcast/", env!("CARGO_PKG_VERSION")))
            .pool_idle_timeout(POOL_IDLE)
            .connect_timeout(CONNECT)
            .no_proxy()
            .build()?;
        let mut base = spec.url.clone();
        base.set_query(None);
        Ok(Self {
            client,
            base,
            credentials: spec.credentials.clone(),
            render_timeout,
            family: Family::default(),
            probed: false,
            model: None,
        })
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = format!("{}{path}", self.base.as_str().trim_end_matches('/'));
        let request = self.client.request(method, url).timeout(QUICK);
        match &self.credentials {
            Some((user, password)) => request.basic_auth(user, Some(password.expose_secret())),
            None => request,
        }
    }

    /// What kind of server it is, as far as is known.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The dialect that it speaks, as far as is known.
    pub fn dialect(&self) -> Dialect {
        self.family.dialect
    }

    /// Looks at a server that may be away, starting, or busy for somebody else. The first look, and each after a failed
    /// one, finds out what kind of server it is.
    pub async fn look(&mut self) -> Result<Look, Unusable> {
        let look = self.look_once().await;
        self.probed &= look.is_ok();
        look
    }

    /// Has the next look ask which checkpoint is loaded, however short ago it was asked.
    pub fn may_have_loaded(&mut self) {
        self.model = None;
    }

    async fn look_once(&mut self) -> Result<Look, Unusable> {
        if !self.probed {
            self.family = self.probe().await?;
            self.probed = true;
        }
        match self.family.dialect {
            Dialect::Sdnext => self.look_at_sdnext().await,
            Dialect::A1111 | Dialect::Forge => self.look_at_webui().await,
        }
    }

    async fn look_at_sdnext(&mut self) -> Result<Look, Unusable> {
        let sample = self.sample().await?;
        if self.model.as_ref().is_none_or(|(_, at)| at.elapsed() >= MODEL_STANDS) {
            let at = Instant::now();
            let checkpoint = self.get("/sdapi/v1/checkpoint").await?;
            let checkpoint: Option<Checkpoint> = serde_json::from_slice(&checkpoint).ok();
            let loaded = checkpoint.filter(|checkpoint| checkpoint.class.is_some());
            self.model = loaded.and_then(|checkpoint| checkpoint.title).map(|title| (title, at));
        }
        Ok(Look { sample, model: self.model.as_ref().map(|(title, _)| title.clone()) })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, Unusable> {
        self.answered(self.request(Method::GET, path)).await
    }

    pub(crate) async fn answered(&self, request: RequestBuilder) -> Result<Bytes, Unusable> {
        let (status, body) = send(request).await.map_err(|error| Unusable::Silent(chain(&error)))?;
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Unusable::Unauthorized),
            StatusCode::TOO_MANY_REQUESTS => Err(Unusable::RateLimited),
            status => Err(Unusable::Odd(status.as_u16())),
        }
    }

    /// Looks at the render at hand. An `Err` says only that this look failed.
    pub async fn sample(&self) -> Result<Sample, Unusable> {
        Ok(Sample::from_body(&self.get("/sdapi/v1/progress?skip_current_image=true").await?))
    }

    /// Renders, and waits for the answer. It sends no byte until it is done.
    pub async fn render(&self, path: &str, body: Bytes) -> Answer {
        let request = self
            .request(Method::POST, path)
            .timeout(self.render_timeout)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
        match send(request).await {
            Ok((status, body)) => Answer::Http { status: status.as_u16(), body },
            Err(error) => transport(&error),
        }
    }

    /// Raises the interrupt flag, which the next stage may wipe.
    pub async fn interrupt(&self) -> Result<(), Unusable> {
        self.done(self.request(Method::POST, "/sdapi/v1/interrupt")).await
    }

    /// Makes the server load its checkpoint anew. Never to be called while anything runs: it takes no lock.
    pub async fn reload_checkpoint(&self) -> Result<(), Unusable> {
        let request = self.request(Method::POST, "/sdapi/v1/reload-checkpoint?force=true").timeout(RELOAD);
        self.done(request).await
    }

    async fn done(&self, request: RequestBuilder) -> Result<(), Unusable> {
        let (status, _) = send(request).await.map_err(|error| Unusable::Silent(chain(&error)))?;
        if status.is_success() { Ok(()) } else { Err(Unusable::Odd(status.as_u16())) }
    }

    /// Where the log ends now, on the server's own clock; `None` if it cannot be read.
    pub async fn log_end(&self) -> Option<LogEnd> {
        if self.dialect() != Dialect::Sdnext {
            return None;
        }
        let lines = self.log(1).await?;
        Some(LogEnd(lines.last().map_or(0.0, |line| line.created)))
    }

    /// Whether the log tells of a failed allocation since `end`; `None` if it cannot be read.
    ///
    /// The words are PyTorch's: `OutOfMemoryError`, "out of memory" on a graphics card, "can't allocate memory" on a
    /// processor.
    pub async fn log_says_out_of_memory(&self, end: LogEnd) -> Option<bool> {
        let lines = self.log(LOG_LINES).await?;
        Some(lines.iter().filter(|line| line.created > end.0).any(|line| {
            let words = line.msg.to_lowercase();
            ["outofmemory", "out of memory", "can't allocate memory"].iter().any(|said| words.contains(said))
        }))
    }

    /// The newest lines, oldest first: each is JSON in a string, as recorded.
    async fn log(&self, lines: u32) -> Option<Vec<LogLine>> {
        let log = self.get(&format!("/sdapi/v1/log?lines={lines}")).await.ok()?;
        let lines: Vec<String> = serde_json::from_slice(&log).ok()?;
        Some(lines.iter().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

/// A place in the log: the time of a line, in seconds on the server's clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogEnd(f64);

#[derive(Deserialize)]
struct LogLine {
    created: f64,
    #[serde(default)]
    msg: String,
}

/// Sends a request and reads its answer to the end; within a trace as a span of that.
async fn send(request: RequestBuilder) -> reqwest::Result<(StatusCode, Bytes)> {
    let (client, request) = request.build_split();
    let request = request?;
    let span = if trace::is_traced() { call(&request) } else { Span::none() };
    let answered = async {
        let answer = client.execute(request).await?;
        Ok((answer.status(), answer.bytes().await?))
    };
    let answered: reqwest::Result<_> = answered.instrument(span.clone()).await;
    match &answered {
        Ok((status, _)) => {
            span.tell("http.response.status_code", i64::from(status.as_u16()));
            if status.is_client_error() || status.is_server_error() {
                span.fail(status.as_str());
            }
        }
        Err(error) => span.fail(if error.is_timeout() { "timeout" } else { "connection" }),
    }
    answered
}

/// Named by its path; what it asks for beside that, and its body, have no place in a trace.
fn call(request: &reqwest::Request) -> Span {
    let (method, url) = (request.method(), request.url());
    debug_span!(
        "call",
        otel.kind = "client",
        otel.name = format!("{method} {}", url.path()),
        http.request.method = %method,
        url.path = url.path(),
        server.address = url.host_str(),
        server.port = url.port_or_known_default(),
    )
}

fn transport(error: &reqwest::Error) -> Answer {
    let kind = if error.is_connect() {
        TransportKind::Refused
    } else if error.is_timeout() {
        TransportKind::TimedOut
    } else if error.is_request() || error.is_body() || error.is_decode() {
        TransportKind::Reset
    } else {
        TransportKind::Other
    };
    Answer::Transport { kind, message: chain(error) }
}

/// An error with its causes, without its URL, which may say more than a client should read.
fn chain(error: &reqwest::Error) -> String {
    let mut text = "request failed".to_owned();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = error.to_string();
        cause = error.source();
    }
    text
}
