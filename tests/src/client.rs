//! HTTP as a client would speak it; what is answered is held against the contract.

use bytes::Bytes;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;

use crate::contract::Contract;
use crate::wait::{until, within};

/// A client of one server.
#[derive(Clone)]
pub struct Http {
    client: Client,
    base: String,
    unchecked: bool,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub bytes: Bytes,
    /// The body as JSON; null if it is none.
    pub json: Value,
}

impl Answer {
    /// Panics if it violates the contract.
    fn check(&self, method: &Method, path: &str) {
        let content_type = self.headers.get("content-type").and_then(|value| value.to_str().ok());
        let (status, content_type) = (self.status.as_u16(), content_type.unwrap_or_default());
        if let Err(error) =
            Contract::get().check_answer(method.as_str(), path, status, content_type, &self.json)
        {
            panic!("{error}");
        }
    }
}

impl Http {
    /// A client of `host:port`.
    pub fn to(address: &str) -> Self {
        // An error only says that one is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().no_proxy().build().expect("a plain client can be built");
        Self { client, base: format!("http://{address}"), unchecked: false }
    }

    /// As it is, with answers that nobody looks at: for measurements.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.unchecked = true;
        self
    }

    /// The server's address, as a client is told it.
    pub fn url(&self) -> &str {
        &self.base
    }

    /// A GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, Bytes::new(), &[]).await
    }

    /// A POST of JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json")];
        self.send(Method::POST, path, body.to_string().into(), &headers).await
    }

    /// Any request.
    pub async fn send(&self, method: Method, path: &str, body: Bytes, headers: &[(&str, &str)]) -> Answer {
        let answered = self.try_send(method, path, body, headers);
        within(&format!("{path} answers"), answered).await.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// Any request, over a connection that may break.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        headers: &[(&str, &str)],
    ) -> reqwest::Result<Answer> {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.base)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let bytes = answer.bytes().await?;
        let json = serde_json::from_slice(&bytes).unwrap_or_default();
        let answer = Answer { status, headers, bytes, json };
        if !self.unchecked {
            answer.check(&method, path);
        }
        Ok(answer)
    }

    /// A GET of server-sent events, from behind the event of this id on; an error if it is refused.
    pub async fn stream(
        &self,
        path: &str,
        last_event_id: Option<&str>,
    ) -> reqwest::Result<reqwest::Response> {
        let mut request = self.client.get(format!("{}{path}", self.base));
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        request.send().await?.error_for_status()
    }

    /// Submits a job that must be accepted, and returns its id.
    pub async fn submit(&self, body: &Value) -> String {
        let answer = self.post("/generation/queue-generation", body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.json);
        answer.json["job_id"].as_str().expect("an accepted job has an id").to_owned()
    }

    /// The job object.
    pub async fn job(&self, id: &str) -> Value {
        let answer = self.get(&format!("/generation/jobs/{id}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.json);
        answer.json
    }

    /// Waits until the job has ended, and returns it.
    pub async fn ended(&self, id: &str) -> Value {
        until(&format!("job {id} has ended"), async || {
            let job = self.job(id).await;
            let status = job["status"].as_str()?.to_owned();
            matches!(status.as_str(), "completed" | "failed" | "cancelled").then_some(job)
        })
        .await
    }
}
