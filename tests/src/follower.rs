//! A WebSocket client as ours are asked to be: it comes back when it is cut off, and keeps everything it was told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::contract::{Contract, Verdict, Violations};
use crate::watcher::Told;

/// Pause before a lost connection is made again, and before a refused subscription is asked for again.
const AGAIN_AFTER: Duration = Duration::from_millis(300);
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// What a follower asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// All jobs; after a loss all jobs, and by their ids those that exist by then.
    All,
    /// Each job by its id, from when it is accepted.
    Ids,
    /// All jobs; after a loss what was recorded since the last message, and then all jobs.
    Since,
}

/// A client of one gateway.
pub struct Follower {
    interest: Interest,
    connections: Arc<Mutex<Vec<Vec<Told>>>>,
    _verdict: Verdict,
    _following: JoinSet<()>,
}

impl Follower {
    /// Follows the jobs of `ids` on the gateway at `host:port`.
    pub fn start(address: String, interest: Interest, ids: watch::Receiver<Vec<String>>) -> Self {
        let connections = Arc::new(Mutex::new(Vec::new()));
        let mut following = JoinSet::new();
        let verdict = Verdict::default();
        following.spawn(follow(address, interest, ids, connections.clone(), verdict.violations()));
        Self { interest, connections, _verdict: verdict, _following: following }
    }

    /// What was told of each job in one go, in order: on one connection, from one answer to a subscribe to the next that
    /// names the job, since that goes back to where it stands. Where nothing was told of it, nothing stands here; for who
    /// asked for what it missed, what it knew already is left out.
    pub fn by_job(&self) -> BTreeMap<String, Vec<Vec<Told>>> {
        let connections = self.connections.lock().expect("no code panics while it holds this lock");
        let mut jobs: BTreeMap<String, Vec<Vec<Told>>> = BTreeMap::new();
        let mut known: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for connection in connections.iter() {
            let mut here: BTreeMap<&str, Vec<Told>> = BTreeMap::new();
            for told in connection {
                let data = &told.message["data"];
                if told.message["type"] == "subscription_confirmed" {
                    for (id, told) in again(&mut here, &data["job_ids"]) {
                        jobs.entry(id.to_owned()).or_default().push(told);
                    }
                }
                if let Some(id) = data["job_id"].as_str() {
                    let place = data["attempt"].as_u64().zip(data["seq"].as_u64()).unwrap_or_default();
                    let is_news = known.get(id).is_none_or(|known| *known < place);
                    if self.interest == Interest::Since && !is_news {
                        continue;
                    }
                    known.insert(id, place);
                    here.entry(id).or_default().push(told.clone());
                }
            }
            for (id, told) in here {
                jobs.entry(id.to_owned()).or_default().push(told);
            }
        }
        jobs
    }

    /// Everything, on all connections, in order.
    pub fn told(&self) -> Vec<Told> {
        self.connections.lock().expect("no code panics while it holds this lock").concat()
    }

    /// Whether the job's end was told.
    pub fn knows_end(&self, job_id: &str) -> bool {
        let connections = self.connections.lock().expect("no code panics while it holds this lock");
        connections.iter().flatten().any(|told| {
            told.message["type"] == "generation_complete" && told.message["data"]["job_id"] == job_id
        })
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.connections.lock().expect("no code panics while it holds this lock").len()
    }
}

/// Takes out what was told of jobs of which it is told anew; null names all.
fn again<'a>(here: &mut BTreeMap<&'a str, Vec<Told>>, job_ids: &Value) -> BTreeMap<&'a str, Vec<Told>> {
    let Some(ids) = job_ids.as_array() else { return std::mem::take(here) };
    ids.iter().filter_map(|id| here.remove_entry(id.as_str()?)).collect()
}

async fn follow(
    address: String,
    interest: Interest,
    mut ids: watch::Receiver<Vec<String>>,
    connections: Arc<Mutex<Vec<Vec<Told>>>>,
    violations: Violations,
) {
    loop {
        let url = format!("ws://{address}/ws/progress");
        if let Ok(Ok((socket, _))) = timeout(CONNECT, tokio_tungstenite::connect_async(url)).await {
            let (first, since) = {
                let mut connections = connections.lock().expect("no code panics while it holds this lock");
                let last =
                    connections.iter().flatten().rfind(|told| told.message["data"]["job_id"].is_string());
                let since = last.map(|told| told.message["timestamp"].clone());
                connections.push(Vec::new());
                (connections.len() == 1, since.filter(|_| interest == Interest::Since))
            };
            let keep = |told: Told| {
                violations.note(Contract::get().check_message(&told.message));
                let mut connections = connections.lock().expect("no code panics while it holds this lock");
                connections.last_mut().expect("pushed above").push(told);
            };
            // A loss of any kind is answered by coming back.
            let _ = converse(socket, interest, first, since, &mut ids, keep).await;
        }
        sleep(AGAIN_AFTER).await;
    }
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn converse(
    socket: Socket,
    interest: Interest,
    first: bool,
    since: Option<Value>,
    ids: &mut watch::Receiver<Vec<String>>,
    keep: impl Fn(Told),
) -> Option<()> {
    let (mut sink, mut stream) = socket.split();
    let mut asked = 0;
    if interest != Interest::Ids {
        sink.send(all(since.as_ref())).await.ok()?;
    }
    // Those that existed before this connection are asked for by all; later ones by those who follow ids.
    let by_id = interest == Interest::Ids || (interest == Interest::All && !first);
    if by_id {
        asked = ask(&mut sink, ids, 0).await?;
    }
    loop {
        tokio::select! {
            changed = ids.changed(), if interest == Interest::Ids => {
                changed.ok()?;
                asked = ask(&mut sink, ids, asked).await?;
            }
            message = stream.next() => match message?.ok()? {
                Message::Text(text) => {
                    let message: Value = serde_json::from_str(&text).expect("the server sends JSON");
                    if message["type"] == "error" {
                        sleep(AGAIN_AFTER).await;
                        if interest != Interest::Ids {
                            sink.send(all(since.as_ref())).await.ok()?;
                        }
                        if by_id {
                            asked = ask(&mut sink, ids, 0).await?;
                        }
                    }
                    keep(Told { at: Instant::now(), message });
                }
                Message::Close(_) => return None,
                _ => {}
            }
        }
    }
}

fn all(since: Option<&Value>) -> Message {
    let mut subscribe = json!({"type": "subscribe", "job_ids": null});
    if let Some(since) = since {
        subscribe["since"] = since.clone();
    }
    Message::text(subscribe.to_string())
}

/// Subscribes to the jobs from the one at `from` on, and returns how many there are.
async fn ask(
    sink: &mut futures_util::stream::SplitSink<Socket, Message>,
    ids: &mut watch::Receiver<Vec<String>>,
    from: usize,
) -> Option<usize> {
    let all = ids.borrow_and_update().clone();
    if let Some(new) = all.get(from..).filter(|new| !new.is_empty()) {
        sink.send(Message::text(json!({"type": "subscribe", "job_ids": new}).to_string())).await.ok()?;
    }
    Some(all.len())
}
