//! Another service that listens on NATS: what it hears of jobs, as it hears it.

use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use tokio::task::JoinSet;

use crate::nats::settled;

/// A message as heard.
#[derive(Clone, Debug)]
pub struct Heard {
    pub subject: String,
    pub payload: bytes::Bytes,
    /// Its place in the event stream; none for progress.
    pub sequence: Option<u64>,
}

/// A subscriber of every job's subjects, which comes back by itself when the broker does.
pub struct Listener {
    heard: Arc<Mutex<Vec<Heard>>>,
    _listening: JoinSet<()>,
}

impl Listener {
    /// Subscribes, and waits until the server knows it.
    pub async fn start(client: &async_nats::Client) -> anyhow::Result<Self> {
        let mut messages = client.subscribe("stepcast.v1.job.>").await?;
        settled(client).await?;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = heard.clone();
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            while let Some(message) = messages.next().await {
                let sequence = message.headers.as_ref().and_then(|headers| headers.get("Nats-Sequence"));
                let heard = Heard {
                    subject: message.subject.to_string(),
                    sequence: sequence.and_then(|sequence| sequence.as_str().parse().ok()),
                    payload: message.payload,
                };
                kept.lock().expect("no code panics while it holds this lock").push(heard);
            }
        });
        Ok(Self { heard, _listening: listening })
    }

    /// Everything so far, in order.
    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().expect("no code panics while it holds this lock").clone()
    }
}
