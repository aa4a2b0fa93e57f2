//! What one would write first, with the settings that one finds out later: a bounded queue
//! and a task per client, small buffers, and all that waits sent before one flush.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use async_nats::Client;
use axum::Router;
use axum::extract::State;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use axum::routing::get;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::Value;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::subjects;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

const READ_BUFFER: usize = 4 * 1024;
const WRITE_BUFFER: usize = 2 * 1024;
/// Messages that may wait for a client; more are dropped, which the windows of the benchmark prevent.
const QUEUE: usize = 256;
const AT_ONCE: usize = 64;

/// How it hears of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Subscriptions {
    /// One for each distinct subject that is watched.
    Exact,
    /// One for all jobs there are, watched or not.
    Everything,
}

#[derive(Clone)]
struct Gateway {
    client: Client,
    subscriptions: Subscriptions,
    topics: Topics,
}

/// Queues by the start of the subjects whose messages they want.
type Topics = Arc<Mutex<HashMap<String, Vec<mpsc::Sender<Utf8Bytes>>>>>;

#[tokio::main]
pub(super) async fn run(nats_url: &str, subscriptions: Subscriptions) -> anyhow::Result<()> {
    let client = async_nats::connect(nats_url).await?;
    let gateway = Gateway { client, subscriptions, topics: Topics::default() };
    if subscriptions == Subscriptions::Everything {
        gateway.pump("stepcast.v1.job.>".to_owned()).await?;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("ready {} 0", listener.local_addr()?.port());
    let router = Router::new().route("/ws/progress", get(upgrade)).with_state(gateway);
    axum::serve(listener, router).await?;
    Ok(())
}

async fn upgrade(State(gateway): State<Gateway>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.read_buffer_size(READ_BUFFER).write_buffer_size(WRITE_BUFFER).on_upgrade(async move |socket| {
        // A client that leaves ends its task; there is nobody to tell.
        let _ = converse(gateway, socket).await;
    })
}

async fn converse(gateway: Gateway, socket: WebSocket) -> anyhow::Result<()> {
    let (mut send, mut receive) = socket.split();
    let (queue, mut queued) = mpsc::channel(QUEUE);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = queued.recv_many(&mut batch, AT_ONCE) => {
                if count == 0 {
                    return Ok(());
                }
                for text in batch.drain(..) {
                    send.feed(Message::Text(text)).await?;
                }
                send.flush().await?;
            }
            message = receive.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    for (topic, subject) in wanted(&text)? {
                        gateway.subscribe(topic, subject, queue.clone()).await?;
                    }
                    send.send(Message::text(r#"{"type":"subscription_confirmed"}"#)).await?;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Ok(()),
            },
        }
    }
}

/// The topics that a subscribe message asks for, and their subjects.
fn wanted(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let owner = Owner::anonymous();
    let with_topic = |subject: String| (subject.trim_end_matches(".*").to_owned(), subject);
    let message: Value = serde_json::from_str(text)?;
    let Some(ids) = message["job_ids"].as_array() else {
        return Ok(vec![with_topic(subjects::all_of_owner(&owner))]);
    };
    let one = |id: &Value| {
        let id: JobId = id.as_str().unwrap_or_default().parse()?;
        Ok(with_topic(subjects::all_of_job(&owner, id)))
    };
    ids.iter().map(one).collect()
}

impl Gateway {
    async fn subscribe(
        &self,
        topic: String,
        subject: String,
        queue: mpsc::Sender<Utf8Bytes>,
    ) -> anyhow::Result<()> {
        let is_new = {
            let mut topics = self.topics.lock().expect("no code panics while it holds this lock");
            let queues = topics.entry(topic).or_default();
            queues.push(queue);
            queues.len() == 1
        };
        if is_new && self.subscriptions == Subscriptions::Exact {
            self.pump(subject).await?;
        }
        Ok(())
    }

    async fn pump(&self, subject: String) -> anyhow::Result<()> {
        let mut messages = self.client.subscribe(subject).await?;
        self.client.flush().await?;
        let topics = Arc::clone(&self.topics);
        #[expect(clippy::disallowed_methods, reason = "a stock gateway has no supervisor")]
        tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                let Ok(text) = Utf8Bytes::try_from(message.payload) else { continue };
                let mut topics = topics.lock().expect("no code panics while it holds this lock");
                let job = message.subject.rsplit_once('.').map_or("", |(job, _)| job);
                let owner = job.rsplit_once('.').map_or("", |(owner, _)| owner);
                for topic in [job, owner] {
                    let Some(queues) = topics.get_mut(topic) else { continue };
                    queues.retain(|queue| {
                        !matches!(queue.try_send(text.clone()), Err(TrySendError::Closed(_)))
                    });
                }
            }
        });
        Ok(())
    }
}
