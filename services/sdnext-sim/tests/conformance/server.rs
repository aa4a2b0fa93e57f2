//! A stand-in server on a free port, and a client that posts while it polls.

use std::time::Duration;

use reqwest::{Client, Method, Response};
use serde_json::Value;
use stepcast_sdnext_sim::{Config, Handle, build, serve};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::recording::{Exchange, Sample};

/// Far longer than anything here takes.
pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) handle: Handle,
    pub(crate) client: Client,
    pub(crate) shutdown: CancellationToken,
    pub(crate) serving: JoinSet<anyhow::Result<()>>,
}

/// What one run looked like from outside.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    pub(crate) samples: Vec<Sample>,
    /// Status and body of each post, in the order of the posts.
    pub(crate) answers: Vec<(u16, Value)>,
    /// The rows that the history has gained.
    pub(crate) history: Vec<Value>,
}

/// Ten times as fast as the recorded server, and without its rate limit, as in most recordings.
pub(crate) fn quick() -> Config {
    Config { time_scale: 0.1, rate_limit: 0, ..Config::default() }
}

impl Server {
    pub(crate) async fn start(config: Config) -> Self {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (router, handle) = build(config);
        let shutdown = CancellationToken::new();
        let mut serving = JoinSet::new();
        serving.spawn(serve(router, handle.clone(), listener, shutdown.clone()));
        let client = Client::builder().no_proxy().build().expect("a client");
        Self { url, handle, client, shutdown, serving }
    }

    pub(crate) async fn send(&self, method: Method, path: &str, json: Option<&Value>) -> Response {
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        if let Some(json) = json {
            request = request.json(json);
        }
        request.send().await.expect("an answer")
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        let response = self.send(Method::GET, path, None).await;
        response.json().await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) async fn post(&self, path: &str, json: &Value) -> (u16, Value) {
        body(self.send(Method::POST, path, Some(json)).await).await
    }

    pub(crate) async fn txt2img(&self, json: &Value) -> (u16, Value) {
        self.post("/sdapi/v1/txt2img", json).await
    }

    pub(crate) async fn history(&self) -> Vec<Value> {
        serde_json::from_value(self.get("/sdapi/v1/history").await).expect("a list")
    }

    pub(crate) async fn progress(&self) -> Sample {
        Sample::new(&self.get("/sdapi/v1/progress?skip_current_image=true").await)
    }

    /// Posts `exchanges` one shortly after the other and polls until all are answered.
    pub(crate) async fn watch(&self, exchanges: &[Exchange]) -> Observed {
        self.watch_and(exchanges, |_| false, "").await
    }

    /// The same, and posts to `path` once, as soon as `when` holds for what was polled so far.
    pub(crate) async fn watch_and(
        &self,
        exchanges: &[Exchange],
        when: impl Fn(&[Sample]) -> bool,
        path: &str,
    ) -> Observed {
        let rows_before = self.history().await.len();
        let mut posts = JoinSet::new();
        for (index, exchange) in exchanges.iter().enumerate() {
            let request = self.client.post(format!("{}{}", self.url, exchange.path)).json(&exchange.request);
            posts.spawn(async move {
                sleep(Duration::from_millis(20) * u32::try_from(index).expect("few")).await;
                (index, body(request.send().await.expect("an answer")).await)
            });
        }
        let mut actions = JoinSet::new();
        let mut action = Some(path).filter(|path| !path.is_empty());
        let mut observed = Observed::default();
        let mut answers = Vec::new();
        let deadline = Instant::now() + DEADLINE;
        while !(posts.is_empty() && actions.is_empty() && (action.is_none() || !exchanges.is_empty())) {
            assert!(Instant::now() < deadline, "not done in time; polled {:?}", observed.samples);
            observed.samples.push(self.progress().await);
            if let Some(path) = action
                && when(&observed.samples)
            {
                action = None;
                let request = self.client.post(format!("{}{path}", self.url));
                actions.spawn(async move { request.send().await.expect("an answer").status() });
            }
            while let Some(answer) = posts.try_join_next() {
                answers.push(answer.expect("posted"));
            }
            while let Some(status) = actions.try_join_next() {
                assert!(status.expect("posted").is_success(), "{path}");
            }
            sleep(Duration::from_millis(2)).await;
        }
        assert!(action.is_none(), "the moment to act never came; polled {:?}", observed.samples);
        observed.samples.push(self.progress().await);
        observed.history = self.history().await.split_off(rows_before);
        answers.sort_by_key(|(index, _)| *index);
        observed.answers = answers.into_iter().map(|(_, answer)| answer).collect();
        observed
    }

    /// Polls `holds` until it does.
    pub(crate) async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let waiting = async {
            while !holds().await {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
    }
}

/// Status and body, the latter `null` where it is empty.
pub(crate) async fn body(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.expect("a body");
    let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).expect("JSON") };
    (status, body)
}
