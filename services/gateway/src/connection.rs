//! One WebSocket, from its greeting to its goodbye: feeds the session, runs what it asks for, and writes what the
//! socket did not take at once.
//!
//! The task of a connection sleeps while messages pass by it: whoever queues a frame writes it. It wakes for what the
//! client says, for a socket that is behind, and for its own clock. While it sleeps it holds no buffer.

use std::collections::VecDeque;
use std::future::pending;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::Shutdown;
use stepcast_shared::ids::{ConnectionId, Owner};
use stepcast_shared::trace::TraceContext;
use tokio::net::TcpStream;
use tokio::task::coop::consume_budget;
use tokio::time::{sleep_until, timeout};
use tracing::{Instrument as _, debug, debug_span};

use crate::Gateway;
use crate::close::{self, Close};
use crate::operations::{Operation, Outcome, Workbench};
use crate::outbox::{Bounds, Outbox, Phase};
use crate::places::Place;
use crate::session::{Action, Input, Session};
use crate::ws::{Decoder, Received, Wire};

/// How long a peer may take to answer our goodbye. Hanging up earlier could destroy what it has not read yet.
const GOODBYE: Duration = Duration::from_secs(2);
/// Bytes read at once; on the stack, and only while something is read.
const READ: usize = 8 * 1024;
/// Most reads in a row: a client that never stops sending must not keep its thread from the others.
const READS: usize = 8;
/// Goodbyes a millisecond that a gateway says when it stops: few clients are let go at once, many over the set time.
const GOODBYES_PER_MS: usize = 2;

/// Greets a client. `heard` is what it said together with its request.
pub fn begin(
    socket: TcpStream,
    heard: &[u8],
    place: Place,
    handshake: Option<Box<TraceContext>>,
    gateway: &Arc<Gateway>,
) -> Conversation {
    let limits = &gateway.limits;
    let bounds = Bounds { messages: limits.outbox_messages, bytes: limits.outbox_bytes };
    let outbox = Arc::new(Outbox::of_socket(bounds, socket));
    // Everybody is anonymous until there are credentials; nothing below depends on it.
    let workbench = Workbench::new(gateway, Owner::anonymous(), Arc::clone(&outbox), handshake);
    let id = ConnectionId::mint();
    let (session, greeting) = Session::new(id, limits, Instant::now());
    outbox.answer(greeting.encode());
    let mut conversation = Conversation {
        id,
        session,
        outbox,
        workbench: Arc::new(workbench),
        running: None,
        queued: VecDeque::new(),
        decoder: Some(Decoder::new(limits.max_frame_bytes)),
        peer_left: false,
        _place: place,
    };
    conversation.understand(heard);
    conversation.outbox.flush();
    conversation
}

/// Serves one connection until either side ends it.
pub async fn serve(mut conversation: Conversation, gateway: Arc<Gateway>) {
    // At debug only: a span is worth more memory than the connection itself.
    let span = debug_span!("connection", connection_id = %conversation.id);
    async {
        let end = conversation.run(&gateway).await;
        debug!(?end, "the connection ends");
        conversation.take_leave(end).await;
    }
    .instrument(span)
    .await;
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The peer is gone.
    Lost,
    /// The goodbye is written.
    Said(Close),
    /// The goodbye could not be written in time.
    Late,
}

type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// One client, its session and what it waits for.
pub struct Conversation {
    id: ConnectionId,
    session: Session,
    outbox: Arc<Outbox>,
    workbench: Arc<Workbench>,
    running: Option<Running>,
    /// At most as many as the session lets wait.
    queued: VecDeque<Operation>,
    /// None once the client cannot be understood any longer, or has said goodbye.
    decoder: Option<Decoder>,
    /// Whether the client has said goodbye.
    peer_left: bool,
    _place: Place,
}

impl Conversation {
    /// Runs until the connection is over.
    async fn run(&mut self, gateway: &Gateway) -> End {
        let limits = &gateway.limits;
        let outbox = Arc::clone(&self.outbox);
        let socket = outbox.socket().expect("it was made with one");
        let mut beat_at = Instant::now() + limits.heartbeat;
        let mut leave_at =
            limits.max_age.map(|age| Instant::now() + age.mul_f64(rand::random_range(0.9..=1.1)));
        let mut stopping = false;
        loop {
            let standing = outbox.standing();
            let behind = match standing.phase {
                Phase::Over(close) => return End::Said(close),
                Phase::Lost => return End::Lost,
                Phase::Open => None,
                Phase::Behind(since) => Some(since + limits.write_deadline),
            };
            let times = [Some(beat_at), behind, standing.wake_at, leave_at];
            let next = times.into_iter().flatten().min().unwrap_or(beat_at);
            tokio::select! {
                readable = socket.readable() => {
                    if readable.is_err() || self.hear(socket).is_err() {
                        return End::Lost;
                    }
                    consume_budget().await;
                }
                () = outbox.wanted() => {}
                _ = socket.writable(), if behind.is_some() => {
                    outbox.resume();
                }
                outcome = outcome(&mut self.running) => {
                    self.running = None;
                    self.advance(Input::Done(outcome));
                }
                () = sleep_until(next.into()) => {
                    let now = Instant::now();
                    if behind.is_some_and(|at| at <= now) {
                        return self.too_late().await;
                    }
                    if beat_at <= now {
                        beat_at = now + limits.heartbeat;
                        self.advance(Input::Tick);
                    }
                    if leave_at.take_if(|at| *at <= now).is_some() {
                        let reconnect_after = limits.reconnect_spread.mul_f64(rand::random());
                        self.advance(Input::Stopping { reconnect_after });
                    }
                    outbox.flush();
                }
                () = gateway.stopping.cancelled(), if !stopping => {
                    stopping = true;
                    let goodbyes = gateway.connections.len() / GOODBYES_PER_MS;
                    let spread = limits.drain.min(Duration::from_millis(goodbyes as u64));
                    let at = Instant::now() + spread.mul_f64(rand::random());
                    leave_at = Some(leave_at.map_or(at, |leave_at| leave_at.min(at)));
                }
            }
        }
    }

    /// Reads what there is, but not so much at once that others would wait for it. Errors if the peer is gone.
    fn hear(&mut self, socket: &TcpStream) -> io::Result<()> {
        let mut bytes = [0; READ];
        for _ in 0..READS {
            match socket.try_read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.understand(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Acts on what was read, and writes the answers.
    fn understand(&mut self, bytes: &[u8]) {
        // After a goodbye, or what cannot be understood, it is read only so that our own goodbye arrives.
        let Some(mut decoder) = self.decoder.take() else { return };
        let mut received = Vec::new();
        let decoded = decoder.decode(bytes, &mut received);
        for message in received {
            match message {
                Received::Close(_) => {
                    self.peer_left = true;
                    self.outbox.close(close::NORMAL);
                }
                // After our own goodbye only the client's counts.
                _ if self.outbox.is_over() => {}
                Received::Text(text) => self.advance(Input::Text(&text)),
                Received::Binary => self.advance(Input::Binary),
                Received::Pong => self.advance(Input::Alive),
                Received::Ping(payload) => {
                    self.outbox.answer(Wire::pong(&payload));
                    self.advance(Input::Alive);
                }
            }
        }
        match decoded {
            Ok(()) if !self.peer_left => self.decoder = Some(decoder),
            Ok(()) => {}
            Err(violation) => {
                debug!(%violation, "the client cannot be understood");
                self.outbox.close(violation.close());
            }
        }
        self.outbox.flush();
    }

    fn advance(&mut self, input: Input<'_>) {
        let now = Instant::now();
        // Before the input: a job that is asked for again must not count as ended because of before.
        let finished = self.outbox.take_ended();
        let mut actions = self.session.handle(Input::Finished(finished), now);
        actions.append(&mut self.session.handle(input, now));
        for action in actions {
            match action {
                Action::Send(answer) => self.outbox.answer(answer.encode()),
                Action::Start(operation) => self.queued.push_back(operation),
                Action::Release(ids) => self.workbench.member.unwatch(&ids),
                Action::Ping => self.outbox.answer(Wire::ping()),
                Action::Close(close) => self.outbox.close(close),
            }
        }
        if self.running.is_none() {
            let next = self.queued.pop_front();
            self.running =
                next.map(|operation| -> Running { Box::pin(Arc::clone(&self.workbench).run(operation)) });
        }
        self.outbox.flush();
    }

    /// Gives a client that takes nothing a last chance to learn why it is let go.
    async fn too_late(&mut self) -> End {
        metrics::counter!("stepcast_gateway_write_timeouts_total").increment(1);
        self.outbox.close(close::TOO_SLOW);
        let over = async {
            while let Phase::Behind(_) = self.outbox.standing().phase {
                let socket = self.outbox.socket().expect("it was made with one");
                let _ = socket.writable().await;
                self.outbox.resume();
            }
        };
        let _ = timeout(GOODBYE, over).await;
        match self.outbox.standing().phase {
            Phase::Over(close) => End::Said(close),
            _ => End::Late,
        }
    }

    /// Hangs up so that the client gets to read our goodbye.
    async fn take_leave(&mut self, end: End) {
        self.workbench.member.unwatch_everything();
        self.running = None;
        let End::Said(close) = end else { return };
        metrics::counter!("stepcast_gateway_closes_total", "code" => close.code.to_string()).increment(1);
        let outbox = Arc::clone(&self.outbox);
        let socket = outbox.socket().expect("it was made with one");
        // How it ends makes no difference: the socket is closed.
        let _ = timeout(GOODBYE, self.hang_up(socket)).await;
    }

    /// Waits for the client's goodbye, says that nothing more comes, and waits until the client hangs up as well.
    async fn hang_up(&mut self, socket: &TcpStream) -> io::Result<()> {
        // Who can no longer be understood is not waited for.
        while !self.peer_left && self.decoder.is_some() {
            socket.readable().await?;
            self.hear(socket)?;
            consume_budget().await;
        }
        // It is the server that ends TCP (RFC 6455 section 7.1.1). One direction first: a socket that is closed while
        // bytes lie in it unread resets the connection, and that can destroy a goodbye which is still on its way.
        rustix::net::shutdown(socket, Shutdown::Write)?;
        loop {
            socket.readable().await?;
            self.hear(socket)?;
            consume_budget().await;
        }
    }
}

/// The outcome of what runs, or nothing for ever. Cancel-safe: what runs goes on at the next call.
async fn outcome(running: &mut Option<Running>) -> Outcome {
    match running {
        Some(running) => running.await,
        None => pending().await,
    }
}
