//! The gateway's own subscriptions to NATS: a connection that does nothing but receive.
//!
//! A client library gives each subscription a queue and its reader a task; here one loop reads one socket, and a
//! subscription is a number and a subject (`docs/adr/0009-own-data-path.md`). Requests and the event stream go over
//! the library's connection as everywhere else.
//!
//! Nothing is dropped here: who reads too slowly is cut off by the server, and what was missed is read again from the
//! stream, as after any other lost connection.

use std::collections::{HashMap, VecDeque};
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

mod link;
pub mod parse;

pub use link::{Info, Link};
pub use parse::Op;

/// How long a new subscription is waited for. Without the server's answer it takes effect once there is one.
const SETTLING: Duration = Duration::from_secs(2);

/// What is subscribed to, and what is to be said to the server.
#[derive(Debug, Default)]
pub struct Feed {
    state: Mutex<State>,
    /// Wakes the loop that speaks.
    changed: Notify,
    /// Wakes who waits for a connection.
    connected: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_connected: bool,
    /// Whether what was recorded before the connection was lost is not all read yet.
    has_gap: bool,
    /// How often a connection was made.
    connects: u64,
    subscriptions: HashMap<u64, Box<str>>,
    next_sid: u64,
    /// Not sent yet.
    outgoing: Vec<u8>,
    /// Whoever waits for the answer to a `PING`, the first first.
    pings: VecDeque<Ping>,
}

/// Why a `PING` was sent.
#[derive(Debug)]
enum Ping {
    /// To know that all subscriptions before it have been read.
    Settle(oneshot::Sender<()>),
    /// To know how far behind the server what is read here is.
    Lag(Instant),
}

/// Ends a subscription when dropped.
#[derive(Debug)]
pub struct Subscription {
    feed: Arc<Feed>,
    sid: u64,
}

impl Feed {
    /// Subscribes; takes effect once the server has read it ([`Self::settled`]), and again after each reconnect.
    pub fn subscribe(self: &Arc<Self>, subject: &str) -> Subscription {
        let mut state = self.lock();
        state.next_sid += 1;
        let sid = state.next_sid;
        state.say(format_args!("SUB {subject} {sid}\r\n"));
        state.subscriptions.insert(sid, subject.into());
        drop(state);
        self.changed.notify_one();
        Subscription { feed: Arc::clone(self), sid }
    }

    /// Waits until the server has read all subscriptions made before. False if that could not be known in time; then
    /// they take effect once the connection is back, which counts as a new one.
    pub async fn settled(&self) -> bool {
        let (sender, answered) = oneshot::channel();
        {
            let mut state = self.lock();
            if !state.is_connected {
                return false;
            }
            state.ping(Ping::Settle(sender));
        }
        self.changed.notify_one();
        matches!(timeout(SETTLING, answered).await, Ok(Ok(())))
    }

    /// Waits for a connection, at most `patience`. Cancel-safe.
    pub async fn ready(&self, patience: Duration) {
        let connected = async {
            loop {
                let connected = self.connected.notified();
                if self.is_connected() {
                    return;
                }
                connected.await;
            }
        };
        let _ = timeout(patience, connected).await;
    }

    /// Whether the connection stands.
    pub fn is_connected(&self) -> bool {
        self.lock().is_connected
    }

    /// Whether something that was recorded may not have been handed out, and is still to be read.
    pub fn has_gap(&self) -> bool {
        self.lock().has_gap
    }

    /// Notes that messages may have been missed although the connection stood.
    pub fn open_gap(&self) {
        self.lock().has_gap = true;
    }

    /// Notes that what was missed has been read, unless the connection has been lost again since it was made for the
    /// `connects`th time.
    pub fn close_gap(&self, connects: u64) {
        let mut state = self.lock();
        if state.is_connected && state.connects == connects {
            state.has_gap = false;
        }
    }

    /// How often a connection was made: whenever it grows, messages may have been missed.
    pub fn connects(&self) -> u64 {
        self.lock().connects
    }

    /// How many subscriptions there are.
    #[cfg(test)]
    pub fn subscriptions(&self) -> usize {
        self.lock().subscriptions.len()
    }

    /// Notes a fresh connection, over which everything is to be subscribed to anew.
    pub fn connected(&self) {
        let mut state = self.lock();
        let state = &mut *state;
        state.is_connected = true;
        state.connects += 1;
        state.outgoing.clear();
        state.pings.clear();
        for (sid, subject) in &state.subscriptions {
            say(&mut state.outgoing, format_args!("SUB {subject} {sid}\r\n"));
        }
        self.connected.notify_waiters();
    }

    /// Notes that the connection is lost.
    pub fn disconnected(&self) {
        let mut state = self.lock();
        state.is_connected = false;
        state.has_gap = true;
        state.outgoing = Vec::new();
        state.pings.clear();
    }

    /// Waits until there is something to be said. Cancel-safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes what is to be said.
    pub fn take_outgoing(&self) -> Vec<u8> {
        std::mem::take(&mut self.lock().outgoing)
    }

    /// Asks how far behind the server what is read here is. False if an earlier question is still open.
    pub fn ask_lag(&self, now: Instant) -> bool {
        let mut state = self.lock();
        if state.pings.iter().any(|ping| matches!(ping, Ping::Lag(_))) {
            return false;
        }
        state.ping(Ping::Lag(now));
        true
    }

    /// Answers the server's `PING`.
    pub fn pong(&self) {
        self.lock().say(format_args!("PONG\r\n"));
    }

    /// Takes note of the server's answer to a `PING`; returns the lag if that was asked for.
    pub fn answered(&self, now: Instant) -> Option<Duration> {
        match self.lock().pings.pop_front()? {
            Ping::Settle(settled) => {
                // Who has stopped waiting does not need it.
                let _ = settled.send(());
                None
            }
            Ping::Lag(asked) => Some(now.saturating_duration_since(asked)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    /// Without a connection nothing needs to be said: everything is, once there is one.
    fn say(&mut self, words: std::fmt::Arguments<'_>) {
        if self.is_connected {
            say(&mut self.outgoing, words);
        }
    }

    fn ping(&mut self, ping: Ping) {
        self.say(format_args!("PING\r\n"));
        self.pings.push_back(ping);
    }
}

fn say(outgoing: &mut Vec<u8>, words: std::fmt::Arguments<'_>) {
    outgoing.write_fmt(words).expect("memory takes every write");
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.feed.lock();
        state.subscriptions.remove(&self.sid);
        state.say(format_args!("UNSUB {}\r\n", self.sid));
        drop(state);
        self.feed.changed.notify_one();
    }
}
