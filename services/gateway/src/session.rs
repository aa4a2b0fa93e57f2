//! The conversation with one client: input and time in, actions out. No socket, no clock, no NATS.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use stepcast_shared::ids::{ConnectionId, JobId};
use stepcast_shared::rpc::{RetryAnswer, SubmitAnswer};

use crate::answers::{Answer, Refusal};
use crate::close::{self, Close};
use crate::config::Limits;
use crate::limits::{RateLimit, Verdict};
use crate::operations::{Operation, Outcome};
use crate::protocol::{self, ClientMessage, Code, Incoming, Jobs, Subscribe};
use crate::replay::Since;
use crate::topics::Topic;

/// What happens to a session.
#[derive(Debug)]
pub enum Input<'a> {
    /// A text frame.
    Text(&'a str),
    /// A binary frame.
    Binary,
    /// A sign of life.
    Alive,
    /// Jobs that ended, as sent to the client.
    Finished(Vec<JobId>),
    /// A started operation has ended.
    Done(Outcome),
    /// A heartbeat has passed.
    Tick,
    /// This process stops.
    Stopping {
        /// When the client may come back.
        reconnect_after: Duration,
    },
}

/// What a session wants done.
#[derive(Debug)]
pub enum Action {
    /// Send an answer.
    Send(Answer),
    /// Run an operation once those before it are done, and give its outcome back.
    Start(Operation),
    /// Watch these jobs no longer: they have ended.
    Release(Vec<JobId>),
    /// Send a WebSocket ping.
    Ping,
    /// Say goodbye; the session is over.
    Close(Close),
}

/// The state of a conversation.
#[derive(Debug)]
pub struct Session {
    max_subscriptions: usize,
    max_pending: usize,
    heartbeat: Duration,
    idle: Duration,
    rate: RateLimit,
    /// A message or a sign of life.
    last_heard: Instant,
    /// A message.
    last_said: Instant,
    all: bool,
    ids: HashSet<JobId>,
    topics: BTreeSet<Topic>,
    /// Operations started and not done.
    pending: usize,
}

impl Session {
    /// A session that begins, and its greeting.
    pub fn new(id: ConnectionId, limits: &Limits, now: Instant) -> (Self, Answer) {
        let session = Self {
            max_subscriptions: limits.max_subscriptions,
            max_pending: limits.max_pending_requests,
            heartbeat: limits.heartbeat,
            rate: RateLimit::new(limits.messages_per_second, limits.message_burst, now),
            last_heard: now,
            last_said: now,
            idle: limits.idle,
            all: false,
            ids: HashSet::new(),
            topics: BTreeSet::new(),
            pending: 0,
        };
        (session, Answer::connected(id, limits.heartbeat))
    }

    /// Advances the session.
    pub fn handle(&mut self, input: Input<'_>, now: Instant) -> Vec<Action> {
        match input {
            Input::Text(text) => self.heard(now, |session| session.text(text)),
            Input::Binary => {
                self.heard(now, |_| refuse(Code::InvalidMessage, "messages are text frames with JSON", None))
            }
            Input::Alive => {
                self.last_heard = now;
                // Who only ever pings may do so, but not without end.
                match self.rate.take(now) {
                    Verdict::Close => vec![Action::Close(close::FLOOD)],
                    Verdict::Pass | Verdict::Refuse => Vec::new(),
                }
            }
            Input::Finished(ids) => self.finished(ids),
            Input::Done(outcome) => self.done(outcome),
            Input::Tick if now.saturating_duration_since(self.last_heard) >= 2 * self.heartbeat => {
                vec![Action::Close(close::SILENT)]
            }
            Input::Tick if self.is_idle(now) => vec![Action::Close(close::IDLE)],
            Input::Tick => vec![Action::Ping],
            Input::Stopping { reconnect_after } => {
                vec![Action::Send(Answer::going_away(reconnect_after)), Action::Close(close::GOING_AWAY)]
            }
        }
    }

    fn heard(&mut self, now: Instant, read: impl FnOnce(&mut Self) -> Vec<Action>) -> Vec<Action> {
        self.last_heard = now;
        self.last_said = now;
        match self.rate.take(now) {
            Verdict::Pass => read(self),
            Verdict::Refuse => {
                let wait = self.rate.wait().as_millis().max(1);
                refuse(Code::RateLimited, format!("too many messages, wait {wait} ms"), None)
            }
            Verdict::Close => vec![Action::Close(close::FLOOD)],
        }
    }

    fn is_idle(&self, now: Instant) -> bool {
        let watches = self.all || !self.ids.is_empty() || !self.topics.is_empty() || self.pending > 0;
        !watches && now.saturating_duration_since(self.last_said) >= self.idle
    }

    fn text(&mut self, text: &str) -> Vec<Action> {
        let Incoming { request_id, message } = match protocol::parse(text) {
            Ok(incoming) => incoming,
            Err(rejection) => return vec![Action::Send(rejection.into())],
        };
        if message == ClientMessage::Ping {
            return vec![Action::Send(Answer::Pong { request_id })];
        }
        if self.pending >= self.max_pending {
            let most = self.max_pending;
            return refuse(Code::RateLimited, format!("{most} requests wait already"), request_id);
        }
        match message {
            ClientMessage::Ping => Vec::new(),
            ClientMessage::Subscribe(subscribe) => self.subscribe(subscribe, request_id),
            ClientMessage::Unsubscribe(jobs, topics) => self.unsubscribe(jobs, &topics, request_id),
            ClientMessage::Submit(jobs) if self.has_room(jobs.len()) => {
                self.start(Operation::Submit { jobs, request_id })
            }
            ClientMessage::Retry(ids) if self.has_room(ids.len()) => {
                self.start(Operation::Retry { ids, request_id })
            }
            ClientMessage::Submit(_) | ClientMessage::Retry(_) => self.too_many(request_id),
            ClientMessage::Cancel(ids) if ids.len() > self.max_subscriptions => {
                let most = self.max_subscriptions;
                refuse(Code::InvalidMessage, format!("at most {most} jobs in one `cancel`"), request_id)
            }
            ClientMessage::Cancel(ids) => self.start(Operation::Cancel { ids, request_id }),
        }
    }

    fn subscribe(&mut self, subscribe: Subscribe, request_id: Option<String>) -> Vec<Action> {
        let Subscribe { jobs, topics, since, batch, max_rate } = subscribe;
        match &jobs {
            Jobs::All => self.all = true,
            Jobs::Ids(ids) => {
                let more = ids.iter().filter(|id| !self.ids.contains(id)).count();
                if self.ids.len() + more > self.max_subscriptions {
                    return self.too_many(request_id);
                }
                self.ids.extend(ids);
            }
        }
        self.topics.extend(&topics);
        let since = since.map(Since::Time);
        self.start(Operation::Subscribe { jobs, topics, since, batch, max_rate, request_id })
    }

    fn unsubscribe(
        &mut self,
        jobs: Jobs,
        topics: &BTreeSet<Topic>,
        request_id: Option<String>,
    ) -> Vec<Action> {
        self.topics.retain(|topic| !topics.contains(topic));
        match &jobs {
            Jobs::All => {
                self.all = false;
                self.ids.clear();
            }
            Jobs::Ids(ids) => self.ids.retain(|id| !ids.contains(id)),
        }
        let mut ids: Vec<JobId> = self.ids.iter().copied().collect();
        ids.sort_unstable();
        let remaining = if self.all { Jobs::All } else { Jobs::Ids(ids) };
        let topics = self.topics.clone();
        self.start(Operation::Unsubscribe { jobs, remaining, topics, request_id })
    }

    fn finished(&mut self, ids: Vec<JobId>) -> Vec<Action> {
        self.ids.retain(|id| !ids.contains(id));
        if ids.is_empty() { Vec::new() } else { vec![Action::Release(ids)] }
    }

    fn done(&mut self, outcome: Outcome) -> Vec<Action> {
        self.pending -= 1;
        match outcome {
            Outcome::Answered => Vec::new(),
            Outcome::Refused(error, request_id) => {
                vec![Action::Send(Refusal::of_call(error, request_id).into())]
            }
            Outcome::Submitted(SubmitAnswer { jobs }, request_id) => {
                let ids = jobs.iter().map(|job| job.job_id).collect();
                self.follow(ids, Answer::Submitted { jobs, request_id })
            }
            Outcome::Retried(RetryAnswer { jobs }, request_id) => {
                let ids = jobs.iter().filter_map(|retry| Some(retry.job.as_ref()?.job_id)).collect();
                self.follow(ids, Answer::RetryResult { jobs, request_id })
            }
            Outcome::Cancelled(answer, request_id) => {
                vec![Action::Send(Answer::CancelResult { jobs: answer.jobs, request_id })]
            }
        }
    }

    /// Answers that jobs were accepted, which are watched from now on.
    fn follow(&mut self, ids: Vec<JobId>, answer: Answer) -> Vec<Action> {
        let mut actions = vec![Action::Send(answer)];
        if !self.all && !ids.is_empty() {
            self.ids.extend(&ids);
            actions.append(&mut self.start(Operation::Follow { ids }));
        }
        actions
    }

    /// Whether so many new jobs can be watched.
    fn has_room(&self, jobs: usize) -> bool {
        self.all || self.ids.len() + jobs <= self.max_subscriptions
    }

    fn start(&mut self, operation: Operation) -> Vec<Action> {
        self.pending += 1;
        vec![Action::Start(operation)]
    }

    fn too_many(&self, request_id: Option<String>) -> Vec<Action> {
        let (most, held) = (self.max_subscriptions, self.ids.len());
        let message = format!(
            "one connection may watch {most} jobs by id and watches {held}: \
             unsubscribe from some, or subscribe to all with `job_ids: null`"
        );
        refuse(Code::TooManySubscriptions, message, request_id)
    }
}

fn refuse(code: Code, message: impl Into<String>, request_id: Option<String>) -> Vec<Action> {
    vec![Action::Send(Answer::error(code, message, request_id))]
}

#[cfg(test)]
mod tests;
