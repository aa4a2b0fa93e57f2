//! One WebSocket, from its greeting to its goodbye: feeds the session, runs what it asks for, writes what waits.
//!
//! Reading and writing are two loops in one task: a client that does not read must not keep us from hearing it.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::ws::{Message, WebSocket};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use stepcast_shared::ids::{ConnectionId, Owner};
use tokio::time::{MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite;
use tracing::{Instrument as _, debug, info_span};

use crate::Gateway;
use crate::answers::Answer;
use crate::close::{self, Close};
use crate::operations::{Operation, Outcome, Workbench};
use crate::outbox::{Bounds, Outbox};
use crate::session::{Action, Input, Session};

/// How long a peer may take to answer our goodbye. Hanging up earlier could destroy what it has not read yet.
const GOODBYE: Duration = Duration::from_secs(2);

/// Serves one connection until either side ends it.
pub async fn serve(socket: WebSocket, gateway: Arc<Gateway>) {
    let id = ConnectionId::mint();
    let _counted = Counted::new();
    run(socket, gateway, id).instrument(info_span!("connection", %id)).await;
}

async fn run(socket: WebSocket, gateway: Arc<Gateway>, id: ConnectionId) {
    let limits = &gateway.limits;
    let outbox =
        Arc::new(Outbox::new(Bounds { messages: limits.outbox_messages, bytes: limits.outbox_bytes }));
    let (session, greeting) = Session::new(id, limits, Instant::now());
    outbox.answer(greeting.encode());
    let (mut sink, mut stream) = socket.split();
    let mut conversation = Conversation::new(&gateway, Arc::clone(&outbox), session);
    let heard_all = {
        let writing = write(&mut sink, &outbox, limits.write_deadline);
        let hearing = conversation.run(&mut stream, &gateway);
        tokio::pin!(writing, hearing);
        tokio::select! {
            close = &mut hearing => {
                outbox.close(close);
                // Whatever waits goes first; each write has its deadline, and this bounds their number.
                let _ = timeout(limits.write_deadline, &mut writing).await;
                close != close::TOO_BIG
            }
            written = &mut writing => {
                if let Err(error) = written {
                    debug!(%error, "the client cannot be written to");
                    return;
                }
                true
            }
        }
    };
    drop(conversation);
    let farewell = async {
        if heard_all {
            while let Some(Ok(_)) = stream.next().await {}
        } else {
            // The rest of an oversized frame cannot be read past; the peer needs time to read why.
            pending::<()>().await;
        }
    };
    let _ = timeout(GOODBYE, farewell).await;
}

/// Writes what waits until the goodbye is written. Errors if the peer is gone or takes too long.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    outbox: &Outbox,
    deadline: Duration,
) -> Result<(), WriteError> {
    loop {
        let batch = outbox.next().await;
        let (count, goodbye) = (batch.frames.len(), batch.close);
        let writing = async {
            for frame in batch.frames {
                sink.feed(frame).await?;
            }
            if let Some(close) = goodbye {
                sink.feed(Message::Close(Some(close.into()))).await?;
            }
            sink.flush().await
        };
        let Ok(written) = timeout(deadline, writing).await else {
            metrics::counter!("stepcast_gateway_write_timeouts_total").increment(1);
            // It may have room for this much; if not, it learns from the lost connection.
            let close = Message::Close(Some(close::TOO_SLOW.into()));
            let _ = timeout(GOODBYE, sink.send(close)).await;
            return Err(WriteError::Late);
        };
        written?;
        metrics::counter!("stepcast_gateway_frames_sent_total").increment(count as u64);
        if let Some(close) = goodbye {
            metrics::counter!("stepcast_gateway_closes_total", "code" => close.code.to_string()).increment(1);
            return Ok(());
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the connection is lost")]
    Lost(#[from] axum::Error),
    #[error("it took too long")]
    Late,
}

type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// The hearing half: the session, and the operations that it has asked for.
struct Conversation {
    session: Session,
    outbox: Arc<Outbox>,
    workbench: Arc<Workbench>,
    running: Option<Running>,
    /// At most as many as the session lets wait.
    queued: VecDeque<Operation>,
}

impl Conversation {
    fn new(gateway: &Gateway, outbox: Arc<Outbox>, session: Session) -> Self {
        // Everybody is anonymous until there are credentials; nothing below depends on it.
        let owner = Owner::anonymous();
        let workbench = Workbench {
            member: gateway.hub.join(owner.clone(), Arc::clone(&outbox)),
            owner,
            client: gateway.client.clone(),
            timeout: gateway.limits.request_timeout,
            reader: Arc::clone(&gateway.reader),
            outbox: Arc::clone(&outbox),
        };
        Self { session, outbox, workbench: Arc::new(workbench), running: None, queued: VecDeque::new() }
    }

    /// Runs until one side wants to end, and says how.
    async fn run(&mut self, stream: &mut SplitStream<WebSocket>, gateway: &Gateway) -> Close {
        let period = gateway.limits.heartbeat;
        let mut heartbeat = interval_at(tokio::time::Instant::now() + period, period);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let close = tokio::select! {
                frame = stream.next() => match frame {
                    Some(Ok(Message::Text(text))) => self.advance(Input::Text(text.as_str())),
                    Some(Ok(Message::Binary(_))) => self.advance(Input::Binary),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => self.advance(Input::Alive),
                    Some(Ok(Message::Close(_))) | None => return close::NORMAL,
                    Some(Err(error)) => return close_after(error),
                },
                outcome = outcome(&mut self.running) => {
                    self.running = None;
                    self.advance(Input::Done(outcome))
                }
                _ = heartbeat.tick() => self.advance(Input::Tick),
                () = gateway.stopping.cancelled() => {
                    let reconnect_after = gateway.limits.reconnect_spread.mul_f64(rand::random());
                    self.advance(Input::Stopping { reconnect_after })
                }
            };
            if let Some(close) = close {
                return close;
            }
        }
    }

    fn advance(&mut self, input: Input<'_>) -> Option<Close> {
        let now = Instant::now();
        // Before the input: a job that is asked for again must not count as ended because of before.
        let finished = self.outbox.take_finished();
        let mut actions = self.session.handle(Input::Finished(finished), now);
        actions.append(&mut self.session.handle(input, now));
        for action in actions {
            match action {
                Action::Send(answer) => self.send(answer),
                Action::Start(operation) => self.queued.push_back(operation),
                Action::Release(ids) => self.workbench.member.unwatch(&ids),
                Action::Ping => self.outbox.ping(),
                Action::Close(close) => return Some(close),
            }
        }
        if self.running.is_none() {
            let next = self.queued.pop_front();
            self.running =
                next.map(|operation| -> Running { Box::pin(Arc::clone(&self.workbench).run(operation)) });
        }
        None
    }

    fn send(&self, answer: Answer) {
        self.outbox.answer(answer.encode());
    }
}

/// The outcome of what runs, or nothing for ever. Cancel-safe: what runs goes on at the next call.
async fn outcome(running: &mut Option<Running>) -> Outcome {
    match running {
        Some(running) => running.await,
        None => pending().await,
    }
}

/// The close that fits what is wrong with a peer's frame.
fn close_after(error: axum::Error) -> Close {
    match error.into_inner().downcast_ref::<tungstenite::Error>() {
        Some(tungstenite::Error::Capacity(_)) => close::TOO_BIG,
        Some(tungstenite::Error::Utf8(_)) => close::NOT_TEXT,
        Some(tungstenite::Error::Protocol(_)) => close::PROTOCOL,
        _ => close::NORMAL,
    }
}

/// Counts a connection for as long as it lives.
struct Counted;

impl Counted {
    fn new() -> Self {
        metrics::gauge!("stepcast_gateway_connections").increment(1.0);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::gauge!("stepcast_gateway_connections").decrement(1.0);
    }
}
