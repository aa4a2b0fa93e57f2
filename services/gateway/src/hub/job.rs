//! One job in the hub: who watches it, and how far it has come.
//!
//! How far a job has come is known once for all its watchers, not once for each: what does not go beyond it is
//! dropped here, so live messages, snapshots and repeated reads may overlap freely. The few watchers of whom it is
//! not known that they have had it are named, and served when the job is read again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stepcast_shared::messages::EventSeq;

use super::table::MemberId;
use crate::feed::Subscription;
use crate::frame::{Class, JobFrame};
use crate::outbox::{Outbox, Round};

/// Who wants a subject, and its subscription.
#[derive(Debug, Default)]
pub(super) struct Topic {
    watchers: Vec<Watcher>,
    pub(super) subscription: Option<Subscription>,
    /// Since when its subscription is not needed.
    pub(super) idle_since: Option<Instant>,
}

#[derive(Debug)]
struct Watcher {
    member: MemberId,
    outbox: Arc<Outbox>,
    /// Takes progress in batches.
    batched: bool,
}

impl Topic {
    pub(super) fn watch(&mut self, member: MemberId, outbox: &Arc<Outbox>, batched: bool) {
        let watcher = Watcher { member, outbox: Arc::clone(outbox), batched };
        match self.watchers.iter_mut().find(|it| it.member == member) {
            Some(known) => *known = watcher,
            None => self.watchers.push(watcher),
        }
    }

    pub(super) fn unwatch(&mut self, member: MemberId, now: Instant) {
        if let Some(index) = self.watchers.iter().position(|it| it.member == member) {
            self.watchers.swap_remove(index);
        }
        if self.watchers.is_empty() {
            self.watchers = Vec::new();
            self.idle_since.get_or_insert(now);
        }
    }

    pub(super) fn is_watched(&self) -> bool {
        !self.watchers.is_empty()
    }

    pub(super) fn has_batched(&self) -> bool {
        self.watchers.iter().any(|it| it.batched)
    }

    pub(super) fn is_batched(&self, member: MemberId) -> bool {
        self.watchers.iter().any(|it| it.member == member && it.batched)
    }

    /// The outboxes of those who take progress in batches.
    pub(super) fn batched(&self) -> impl Iterator<Item = &Arc<Outbox>> {
        self.watchers.iter().filter(|it| it.batched).map(|it| &it.outbox)
    }

    pub(super) fn is_idle(&self, now: Instant, linger: Duration) -> bool {
        self.subscription.is_some()
            && self.idle_since.is_some_and(|since| now.saturating_duration_since(since) >= linger)
    }

    /// Hands a frame to every watcher, to all of whom it is news; returns to how many.
    fn deliver(&self, frame: &JobFrame, round: &mut Round) -> usize {
        self.takers(frame).map(|it| round.news(&it.outbox, frame)).count()
    }

    /// Hands a frame to every watcher that has not had it.
    pub(super) fn offer(&self, frame: &JobFrame, round: &mut Round) -> usize {
        self.offer_where(|_| true, frame, round)
    }

    fn offer_where(&self, is_meant: impl Fn(MemberId) -> bool, frame: &JobFrame, round: &mut Round) -> usize {
        let meant = self.takers(frame).filter(|it| is_meant(it.member));
        meant.map(|it| round.again(&it.outbox, frame)).count()
    }

    /// Who takes progress in batches gets it with the next one.
    fn takers(&self, frame: &JobFrame) -> impl Iterator<Item = &Watcher> {
        let is_event = frame.class == Class::Event;
        self.watchers.iter().filter(move |it| is_event || !it.batched)
    }

    pub(super) fn outboxes(&self) -> impl Iterator<Item = &Arc<Outbox>> {
        self.watchers.iter().map(|it| &it.outbox)
    }

    fn members(&self) -> impl Iterator<Item = MemberId> {
        self.watchers.iter().map(|it| it.member)
    }
}

/// What is known of a job that somebody watches.
#[derive(Debug)]
pub(super) struct JobTopic {
    pub(super) topic: Topic,
    /// The furthest that was handed out.
    reached: Option<EventSeq>,
    /// The last progress of the running attempt.
    progress: Option<JobFrame>,
    /// Watchers who may not have had what was handed out before they came.
    unsure: Vec<MemberId>,
    /// Who watched all jobs when another's snapshot told of this one, of which nobody here had heard. To them the live
    /// copy of that event, if it is still under way, is news.
    untold: Vec<MemberId>,
    /// When its recorded events are to be read again.
    pub(super) due: Instant,
}

impl JobTopic {
    pub(super) fn new(due: Instant) -> Self {
        Self {
            topic: Topic::default(),
            reached: None,
            progress: None,
            unsure: Vec::new(),
            untold: Vec::new(),
            due,
        }
    }

    /// Hands a frame to whom it is news, among the job's own watchers and those of `all`; returns to how many.
    pub(super) fn deliver(&mut self, frame: &JobFrame, all: &Topic, round: &mut Round) -> usize {
        if self.advance(frame) {
            self.unsure.clear();
            return self.topic.deliver(frame, round) + all.deliver(frame, round);
        }
        if frame.class == Class::Progress || self.is_overtaken(frame) {
            return 0;
        }
        let untold = std::mem::take(&mut self.untold);
        all.offer_where(|it| untold.contains(&it), frame, round) + self.reassure(frame, all, round)
    }

    /// Hands an event that was read again to those alone who may have had nothing yet; they need the progress too.
    fn reassure(&mut self, frame: &JobFrame, all: &Topic, round: &mut Round) -> usize {
        if self.unsure.is_empty() || self.is_overtaken(frame) {
            return 0;
        }
        let unsure = std::mem::take(&mut self.unsure);
        let further = self.progress.as_ref().filter(|progress| progress.seq > frame.seq);
        let mut delivered = 0;
        for topic in [&self.topic, all] {
            delivered += topic.offer_where(|it| unsure.contains(&it), frame, round);
            if let Some(progress) = further {
                topic.offer_where(|it| unsure.contains(&it), progress, round);
            }
        }
        delivered
    }

    /// Takes note that a member is told of this event, or of nothing, by a snapshot, and returns the progress that
    /// belongs to it. Where the event is news to others it is handed to them, without its place in the stream: what
    /// was recorded before it may still be on its way to them.
    pub(super) fn settle(
        &mut self,
        member: MemberId,
        event: Option<&JobFrame>,
        all: &Topic,
        round: &mut Round,
    ) -> Option<JobFrame> {
        let was_unsure = self.unsure.contains(&member);
        self.unsure.retain(|it| *it != member);
        let alone = event.cloned().map(JobFrame::without_place);
        match &alone {
            None => {
                // What was handed out of it was not read.
                self.unsure.extend((was_unsure && self.reached.is_some()).then_some(member));
            }
            Some(event) if self.reached.is_none() => {
                // Nobody here has heard of the job: whoever asked for it by id before has not had this either.
                self.advance(event);
                self.topic.offer(event, round);
                let unsure = std::mem::take(&mut self.unsure);
                all.offer_where(|it| unsure.contains(&it), event, round);
                let told: HashSet<MemberId> = self.topic.members().chain(unsure).chain([member]).collect();
                self.untold = all.members().filter(|it| !told.contains(it)).collect();
            }
            Some(event) if self.is_news(event) => {
                self.deliver(event, all, round);
            }
            Some(event) if self.is_overtaken(event) => {
                // What was handed out later came either after this one or before it.
                self.unsure.extend(was_unsure.then_some(member));
            }
            Some(event) => {
                self.untold.retain(|it| *it != member);
                self.reassure(event, all, round);
            }
        }
        self.progress.clone()
    }

    /// Notes that a member may not have had what was handed out before.
    pub(super) fn doubt(&mut self, member: MemberId) {
        if !self.unsure.contains(&member) {
            self.unsure.push(member);
        }
    }

    pub(super) fn unwatch(&mut self, member: MemberId, now: Instant) {
        self.topic.unwatch(member, now);
        self.unsure.retain(|it| *it != member);
    }

    /// Whether nothing of it follows.
    pub(super) fn has_ended(&self) -> bool {
        self.reached.is_some_and(EventSeq::is_terminal)
    }

    /// Whether its recorded events are worth reading again.
    pub(super) fn may_have_news(&self) -> bool {
        !self.has_ended() || !self.unsure.is_empty()
    }

    /// Whether it is watched, by itself or with all others, or still subscribed to.
    pub(super) fn is_held(&self) -> bool {
        self.topic.is_watched() || self.topic.subscription.is_some()
    }

    /// The latest progress, if it goes beyond the last event.
    #[cfg(test)]
    pub(super) fn progress(&self) -> Option<&JobFrame> {
        self.progress.as_ref()
    }

    /// The furthest that was handed out.
    #[cfg(any(test, fuzzing))]
    pub(super) fn reached(&self) -> Option<EventSeq> {
        self.reached
    }

    /// Whether a frame goes beyond what was handed out.
    pub(super) fn is_news(&self, frame: &JobFrame) -> bool {
        self.reached.is_none_or(|reached| !reached.is_terminal() && reached < frame.seq)
    }

    /// Whether a later event than this one was handed out.
    fn is_overtaken(&self, event: &JobFrame) -> bool {
        match (&self.progress, self.reached) {
            (Some(progress), _) => event.seq.attempt < progress.seq.attempt,
            (None, reached) => reached.is_some_and(|reached| event.seq < reached),
        }
    }

    /// Takes note of a frame; false if it does not go beyond what was handed out.
    fn advance(&mut self, frame: &JobFrame) -> bool {
        if !self.is_news(frame) {
            return false;
        }
        self.untold = Vec::new();
        self.reached = Some(frame.seq);
        self.progress = match frame.class {
            Class::Progress => Some(frame.clone()),
            Class::Event => None,
        };
        true
    }
}
