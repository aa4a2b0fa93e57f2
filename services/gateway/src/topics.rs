//! What is watched beside jobs: the statistics, and the states of the backends.
//!
//! Nothing is asked for while nobody wants it. The statistics are asked of api, which counts them at most once a second
//! however many gateways ask; the states come from the pollers, over one subscription for all connections. Both are
//! state: of each thing only the latest waits for a client that is slow, behind everything about jobs. It goes over the
//! library's connection and in tasks of its own, so that jobs are passed on as if it were not there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::Timestamp;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::outbox::Outbox;
use crate::ws::Wire;

mod backends;
mod stats;

pub use backends::Backends;
pub use stats::Statistics;

/// Connections that are written to before others have a turn.
const AT_ONCE: usize = 64;

/// What can be watched beside jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// How the installation does.
    Stats,
    /// What each backend is doing.
    Backends,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 2] = [Self::Stats, Self::Backends];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stats => "stats",
            Self::Backends => "backends",
        }
    }

    /// The topic of that name.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|topic| topic.as_str() == word)
    }
}

/// What a message is the latest of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Matter {
    /// How the installation does.
    Stats,
    /// One backend.
    Backend(BackendId),
}

impl Matter {
    /// The topic under which it is watched.
    pub fn topic(&self) -> Topic {
        match self {
            Self::Stats => Topic::Stats,
            Self::Backend(_) => Topic::Backends,
        }
    }
}

/// Who watches what, and the latest of it.
#[derive(Debug, Default)]
pub struct Board {
    state: Mutex<State>,
    /// Wakes whoever brings what nobody wanted so far.
    wanted: Notify,
    next_member: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    watchers: HashMap<u64, Watcher>,
    known: BTreeMap<Matter, Known>,
}

#[derive(Debug)]
struct Watcher {
    outbox: Arc<Outbox>,
    topics: BTreeSet<Topic>,
}

#[derive(Debug)]
struct Known {
    wire: Wire,
    /// By the clock of whoever says it.
    at: Timestamp,
    heard: Instant,
}

impl Board {
    /// Adds a connection, which watches nothing yet.
    pub fn join(self: &Arc<Self>, outbox: Arc<Outbox>) -> Seat {
        let id = self.next_member.fetch_add(1, Ordering::Relaxed);
        Seat { board: Arc::clone(self), id, outbox }
    }

    /// Waits until somebody watches a topic. Cancel-safe.
    async fn wanted(&self, topic: Topic) {
        loop {
            let changed = self.wanted.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_wanted(topic) {
                return;
            }
            changed.await;
        }
    }

    fn is_wanted(&self, topic: Topic) -> bool {
        self.lock().watchers.values().any(|watcher| watcher.topics.contains(&topic))
    }

    /// Tells all who watch it, unless something later is known. `at` is by the clock of whoever says it.
    async fn tell(&self, matter: Matter, wire: Wire, at: Timestamp) {
        let outboxes = {
            let mut state = self.lock();
            // A state that is read again has been told. Statistics of one window also say what waits meanwhile.
            let is_told = |known: &Known| known.at > at || (known.at == at && matter != Matter::Stats);
            if state.known.get(&matter).is_some_and(is_told) {
                return;
            }
            let known = Known { wire: wire.clone(), at, heard: Instant::now() };
            state.known.insert(matter.clone(), known);
            state.outboxes(matter.topic())
        };
        pass_on(&outboxes, &matter, &wire).await;
    }

    /// Forgets it, and tells all who watched it why.
    async fn retire(&self, matter: Matter, wire: Wire) {
        let outboxes = {
            let mut state = self.lock();
            state.known.remove(&matter);
            state.outboxes(matter.topic())
        };
        pass_on(&outboxes, &matter, &wire).await;
    }

    /// Forgets everything of a topic that nobody watches any longer; false if somebody does again.
    fn forget(&self, topic: Topic) -> bool {
        let mut state = self.lock();
        if state.watchers.values().any(|watcher| watcher.topics.contains(&topic)) {
            return false;
        }
        state.known.retain(|matter, _| matter.topic() != topic);
        true
    }

    /// Counts everything of a topic as just heard.
    fn refresh(&self, topic: Topic) {
        let of_topic = |(matter, _): &(&Matter, &mut Known)| matter.topic() == topic;
        let now = Instant::now();
        self.lock().known.iter_mut().filter(of_topic).for_each(|(_, known)| known.heard = now);
    }

    /// What was not heard of for so long.
    fn silent(&self, topic: Topic, since: Duration) -> Vec<Matter> {
        let state = self.lock();
        let silent =
            |(matter, known): &(&Matter, &Known)| matter.topic() == topic && known.heard.elapsed() >= since;
        state.known.iter().filter(silent).map(|(matter, _)| matter.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }
}

impl State {
    fn outboxes(&self, topic: Topic) -> Vec<Arc<Outbox>> {
        let watching = self.watchers.values().filter(|watcher| watcher.topics.contains(&topic));
        watching.map(|watcher| Arc::clone(&watcher.outbox)).collect()
    }

    fn publish_counts(&self) {
        for topic in Topic::ALL {
            let count = self.watchers.values().filter(|watcher| watcher.topics.contains(&topic)).count();
            metrics::gauge!("stepcast_gateway_topic_subscriptions", "topic" => topic.as_str())
                .set(count as f64);
        }
    }
}

async fn pass_on(outboxes: &[Arc<Outbox>], matter: &Matter, wire: &Wire) {
    for outboxes in outboxes.chunks(AT_ONCE) {
        for outbox in outboxes {
            outbox.latest(matter, wire);
            outbox.flush();
        }
        tokio::task::yield_now().await;
    }
}

/// A connection's place at the board; dropping it ends what it watches.
pub struct Seat {
    board: Arc<Board>,
    id: u64,
    outbox: Arc<Outbox>,
}

impl fmt::Debug for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Seat {
    /// Watches these topics too, and queues the latest that is known of them.
    pub fn watch(&self, topics: &BTreeSet<Topic>) {
        if topics.is_empty() {
            return;
        }
        {
            let mut state = self.board.lock();
            let outbox = &self.outbox;
            let watcher = || Watcher { outbox: Arc::clone(outbox), topics: BTreeSet::new() };
            state.watchers.entry(self.id).or_insert_with(watcher).topics.extend(topics);
            // Under the lock, or something later could be overtaken.
            for (matter, known) in state.known.iter().filter(|(matter, _)| topics.contains(&matter.topic())) {
                outbox.latest(matter, &known.wire);
            }
            state.publish_counts();
        }
        self.board.wanted.notify_waiters();
    }

    /// Watches no other topics any longer.
    pub fn watch_only(&self, topics: &BTreeSet<Topic>) {
        let mut state = self.board.lock();
        let Some(watcher) = state.watchers.get_mut(&self.id) else { return };
        watcher.topics.retain(|topic| topics.contains(topic));
        if watcher.topics.is_empty() {
            state.watchers.remove(&self.id);
        }
        state.publish_counts();
        // Under the lock, or it might be queued once more.
        self.outbox.keep_latest_of(topics);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.watch_only(&BTreeSet::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Bounds;

    fn wire(text: &str) -> Wire {
        Wire::text(text)
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn backend(id: &str) -> Matter {
        Matter::Backend(id.parse().unwrap())
    }

    fn join(board: &Arc<Board>) -> (Seat, Arc<Outbox>) {
        let outbox = Arc::new(Outbox::of_reader(Bounds { messages: 8, bytes: 1_000 }));
        (board.join(Arc::clone(&outbox)), outbox)
    }

    async fn told(outbox: &Outbox) -> Vec<String> {
        // Answers go before what is beside jobs: so there is something to take, and all the rest comes with it.
        outbox.answer(wire("an answer"));
        let (frames, _) = outbox.next().await;
        let told = frames.iter().map(|it| String::from_utf8(it.wire.payload().to_vec()).unwrap());
        told.skip(1).collect()
    }

    #[tokio::test]
    async fn each_hears_what_it_watches_and_first_what_is_known() {
        let board = Arc::new(Board::default());
        let ((one, outbox), (two, other)) = (join(&board), join(&board));
        one.watch(&BTreeSet::from([Topic::Backends]));
        board.tell(backend("gpu"), wire("idle"), at(2)).await;
        board.tell(backend("gpu"), wire("overtaken"), at(1)).await;
        board.tell(Matter::Stats, wire("stats"), at(1)).await;
        two.watch(&BTreeSet::from(Topic::ALL));
        assert_eq!(told(&outbox).await, ["idle"]);
        assert_eq!(told(&other).await, ["stats", "idle"]);
        two.watch_only(&BTreeSet::from([Topic::Stats]));
        board.tell(backend("gpu"), wire("busy"), at(3)).await;
        assert_eq!((told(&outbox).await, told(&other).await), (vec!["busy".to_owned()], Vec::new()));
        drop(one);
        assert!(!board.is_wanted(Topic::Backends) && board.is_wanted(Topic::Stats));
        assert!(board.forget(Topic::Backends) && !board.forget(Topic::Stats));
    }

    #[tokio::test]
    async fn what_is_silent_is_told_of_once_unless_it_is_us_who_hear_nothing() {
        let board = Arc::new(Board::default());
        let (seat, outbox) = join(&board);
        seat.watch(&BTreeSet::from([Topic::Backends]));
        board.tell(backend("gpu"), wire("idle"), at(1)).await;
        let long = Duration::from_millis(50);
        while board.silent(Topic::Backends, long).is_empty() {
            tokio::task::yield_now().await;
        }
        board.refresh(Topic::Backends);
        assert_eq!(board.silent(Topic::Backends, Duration::from_hours(1)), []);
        assert_eq!(board.silent(Topic::Backends, Duration::ZERO), [backend("gpu")]);
        board.retire(backend("gpu"), wire("gone")).await;
        assert_eq!(board.silent(Topic::Backends, Duration::ZERO), []);
        assert_eq!(told(&outbox).await, ["gone"], "in place of what was not sent yet");
        board.tell(backend("gpu"), wire("back"), at(0)).await;
        assert_eq!(told(&outbox).await, ["back"], "its clock may have been set back");
    }
}
