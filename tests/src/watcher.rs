//! A WebSocket client that keeps everything it was told, and holds it against the contract.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use futures_util::stream::SplitSink;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::contract::{Contract, Verdict};
use crate::wait::within;

/// What a watcher was told, and when.
#[derive(Clone, Debug)]
pub struct Told {
    pub at: Instant,
    pub message: Value,
}

/// A connected client.
pub struct Watcher {
    sink: SplitSink<WebSocketStream<MaybeTlsStream<TcpStream>>, Message>,
    told: Arc<Mutex<Vec<Told>>>,
    seen: watch::Receiver<usize>,
    /// The close code, once the server has closed.
    closed: watch::Receiver<Option<u16>>,
    _verdict: Verdict,
    _reading: JoinSet<()>,
}

impl Watcher {
    /// Connects to `host:port`, and waits for `connected`.
    pub async fn connect(address: &str) -> anyhow::Result<Self> {
        let (socket, _) = tokio_tungstenite::connect_async(format!("ws://{address}/ws/progress")).await?;
        let (sink, mut stream) = socket.split();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (report, seen) = watch::channel(0);
        let (closing, closed) = watch::channel(None);
        let mut reading = JoinSet::new();
        let verdict = Verdict::default();
        let violations = verdict.violations();
        let kept = told.clone();
        reading.spawn(async move {
            while let Some(Ok(message)) = stream.next().await {
                match message {
                    Message::Text(text) => {
                        let message = serde_json::from_str(&text).expect("the server sends JSON");
                        violations.note(Contract::get().check_message(&message));
                        let mut kept = kept.lock().expect("no code panics while it holds this lock");
                        kept.push(Told { at: Instant::now(), message });
                        report.send_replace(kept.len());
                    }
                    Message::Close(frame) => {
                        closing.send_replace(Some(frame.map_or(1005, |frame| frame.code.into())));
                    }
                    _ => {}
                }
            }
            closing.send_if_modified(|code| {
                let abrupt = code.is_none();
                code.get_or_insert(1006);
                abrupt
            });
        });
        let mut watcher = Self { sink, told, seen, closed, _verdict: verdict, _reading: reading };
        watcher.wait("connected", |message| message["type"] == "connected").await;
        Ok(watcher)
    }

    /// Sends a message.
    pub async fn send(&mut self, message: &Value) {
        self.send_raw(Message::text(message.to_string())).await;
    }

    /// Sends any frame.
    pub async fn send_raw(&mut self, message: Message) {
        self.sink.send(message).await.expect("the connection is open");
    }

    /// Sends any frame that the server may cut off.
    pub async fn try_send(&mut self, message: Message) {
        let _ = self.sink.send(message).await;
    }

    /// Subscribes to these jobs, or to all, and waits for the confirmation.
    pub async fn subscribe(&mut self, job_ids: Option<&[String]>) -> Value {
        self.send(&json!({"type": "subscribe", "job_ids": job_ids})).await;
        self.wait("subscription_confirmed", |message| message["type"] == "subscription_confirmed").await
    }

    /// The first message that fits, waited for.
    pub async fn wait(&mut self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        let told = self.told.clone();
        let find = || {
            let told = told.lock().expect("no code panics while it holds this lock");
            told.iter().find(|told| fits(&told.message)).map(|told| told.message.clone())
        };
        let mut seen = self.seen.clone();
        let looking = async {
            loop {
                if let Some(found) = find() {
                    return found;
                }
                if seen.changed().await.is_err() {
                    return find().unwrap_or_else(|| panic!("the connection ended before: {what}"));
                }
            }
        };
        within(what, looking).await
    }

    /// Waits for the terminal message of a job.
    pub async fn ended(&mut self, job_id: &str) -> Value {
        self.wait(&format!("the end of {job_id}"), |message| {
            message["type"] == "generation_complete" && message["data"]["job_id"] == job_id
        })
        .await
    }

    /// Waits for the server to close, and returns the code.
    pub async fn closed(&mut self) -> u16 {
        let code = within("the server closes", self.closed.wait_for(Option::is_some)).await;
        code.map_or(1006, |code| code.unwrap_or(1006))
    }

    /// Everything so far.
    pub fn told(&self) -> Vec<Told> {
        self.told.lock().expect("no code panics while it holds this lock").clone()
    }

    /// The messages about one job, in order.
    pub fn about(&self, job_id: &str) -> Vec<Told> {
        let mut told = self.told();
        told.retain(|told| told.message["data"]["job_id"] == job_id);
        told
    }
}
