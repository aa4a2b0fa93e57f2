//! The two lanes of an outbox, without a clock or a lock.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use stepcast_shared::ids::JobId;
use stepcast_shared::messages::EventSeq;

use super::rates::Rates;
use super::{Batch, Bounds, Outgoing};
use crate::close::{self, Close};
use crate::frame::{Class, JobFrame};
use crate::protocol::Jobs;
use crate::topics::{Matter, Topic};
use crate::ws::Wire;

/// How many ended jobs are kept for the session. Nobody asks for them while the connection watches all jobs; what is
/// left out is merely not tidied up.
const ENDED_KEPT: usize = 4_096;
/// Of how many jobs it is remembered what was told; beyond it all are forgotten, at worst to be told twice.
const JOBS_REMEMBERED: usize = 1_024;
/// Room that an empty queue keeps, so that idle connections stay small after a burst.
const ROOM_KEPT: usize = 8;

#[derive(Debug)]
pub(super) struct Lanes {
    bounds: Bounds,
    /// Events and answers, in order.
    events: VecDeque<Outgoing>,
    event_bytes: usize,
    /// The latest unsent progress of each job.
    progress: HashMap<JobId, Wire>,
    /// Jobs that may have unsent progress, the longest waiting first.
    waiting: VecDeque<JobId>,
    /// The latest unsent message of each matter beside jobs; behind everything else.
    latest: BTreeMap<Matter, Wire>,
    /// The last message queued of each job lately by a snapshot, or that was held back for one or handed over though it
    /// may have been told: the hub cannot know of every connection what it has had. What the hub knows to be news goes
    /// beyond all of this, and is neither looked up nor noted: with many connections that watch many jobs each look would
    /// miss the processor's cache.
    told: HashMap<JobId, EventSeq>,
    /// Jobs that ended, for the session.
    ended: Vec<JobId>,
    /// The last live message: who watches a job by itself and with all others is handed it twice in a row.
    last: Option<(JobId, EventSeq)>,
    hold: Option<Box<Hold>>,
    rates: Option<Box<Rates>>,
    closing: Option<Close>,
    /// Updates that were replaced before they were sent, not counted elsewhere yet.
    conflated: u64,
}

/// What a call of [`Lanes::take`] left.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Left {
    /// Goodbye, now that everything else was taken.
    pub close: Option<Close>,
    /// When held-back progress may go, if nothing else happens.
    pub wake_at: Option<Instant>,
}

/// Live messages that wait for a snapshot.
#[derive(Debug)]
struct Hold {
    /// Which jobs; `None` for all.
    ids: Option<HashSet<JobId>>,
    /// How far the snapshot has told each job.
    told: HashMap<JobId, EventSeq>,
    events: Vec<JobFrame>,
    progress: HashMap<JobId, JobFrame>,
}

impl Lanes {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            events: VecDeque::new(),
            event_bytes: 0,
            progress: HashMap::new(),
            waiting: VecDeque::new(),
            latest: BTreeMap::new(),
            told: HashMap::new(),
            ended: Vec::new(),
            last: None,
            hold: None,
            rates: None,
            closing: None,
            conflated: 0,
        }
    }

    /// Queues what is sent as it is.
    pub(super) fn push(&mut self, wire: Wire, place: u64) {
        if self.closing.is_some() {
            return;
        }
        self.event_bytes += wire.frame().len();
        self.events.push_back(Outgoing { wire, place });
        if self.events.len() > self.bounds.messages {
            self.overflow("messages");
        } else if self.event_bytes > self.bounds.bytes {
            self.overflow("bytes");
        }
    }

    /// Queues a message that goes beyond all that was told of its job, or holds it back for a snapshot.
    pub(super) fn news(&mut self, frame: &JobFrame) {
        if !self.is_last(frame) && !self.hold_back(frame) {
            self.queue(frame);
        }
    }

    /// Queues a message unless it was told, or holds it back for a snapshot.
    pub(super) fn again(&mut self, frame: &JobFrame) {
        if !self.is_last(frame) && !self.hold_back(frame) {
            self.accept(frame);
        }
    }

    fn is_last(&mut self, frame: &JobFrame) -> bool {
        let this = Some((frame.job_id, frame.seq));
        std::mem::replace(&mut self.last, this) == this
    }

    /// Returns whether the message waits for a snapshot now.
    fn hold_back(&mut self, frame: &JobFrame) -> bool {
        let Some(hold) = self.hold.as_mut().filter(|hold| hold.covers(frame.job_id)) else { return false };
        hold.keep(frame);
        if hold.events.len() > self.bounds.messages {
            self.overflow("snapshot");
        }
        true
    }

    /// Queues a message of a snapshot.
    pub(super) fn snapshot(&mut self, frame: &JobFrame) {
        if let Some(hold) = &mut self.hold {
            if frame.class == Class::Progress && hold.has_news_of(frame.job_id) {
                // It belongs behind an event that came after the snapshot was read.
                hold.keep_latest(frame);
                return;
            }
            hold.told.insert(frame.job_id, frame.seq);
        }
        self.accept(frame);
    }

    /// Queues progress of many jobs: as the shared batch if nothing else waits, otherwise job by job, so that a client
    /// that is behind gets the latest of each and not one batch after another.
    pub(super) fn batch(&mut self, batch: &Batch) {
        let is_free = self.is_empty() && self.hold.is_none() && self.rates.is_none();
        if is_free {
            for wire in &batch.wires {
                self.push(wire.clone(), 0);
            }
        } else {
            for frame in &batch.frames {
                if !self.hold_back(frame) {
                    self.queue(frame);
                }
            }
        }
    }

    /// Queues the latest of a matter, in place of what is not sent yet.
    pub(super) fn latest(&mut self, matter: &Matter, wire: &Wire) {
        if self.closing.is_none() {
            self.latest.insert(matter.clone(), wire.clone());
        }
    }

    /// Drops what is unsent of other topics; they are no longer watched.
    pub(super) fn keep_latest_of(&mut self, topics: &BTreeSet<Topic>) {
        self.latest.retain(|matter, _| topics.contains(&matter.topic()));
    }

    fn accept(&mut self, frame: &JobFrame) {
        if self.told.get(&frame.job_id).is_some_and(|told| *told >= frame.seq) {
            return;
        }
        if self.told.len() >= JOBS_REMEMBERED {
            self.told = HashMap::new();
        }
        self.told.insert(frame.job_id, frame.seq);
        self.queue(frame);
    }

    fn queue(&mut self, frame: &JobFrame) {
        if self.closing.is_some() {
            return;
        }
        match frame.class {
            Class::Event => {
                // A map hashes the key even while it is empty.
                if !self.progress.is_empty() {
                    self.conflated += u64::from(self.progress.remove(&frame.job_id).is_some());
                }
                if frame.is_terminal() && self.ended.len() < ENDED_KEPT {
                    self.ended.push(frame.job_id);
                }
                self.push(frame.wire.clone(), frame.place);
            }
            Class::Progress => {
                if self.progress.insert(frame.job_id, frame.wire.clone()).is_some() {
                    self.conflated += 1;
                } else {
                    self.waiting.push_back(frame.job_id);
                }
            }
        }
    }

    pub(super) fn hold(&mut self, jobs: &Jobs) {
        // One request of a connection is served at a time, so at most one snapshot is being taken.
        let ids = match jobs {
            Jobs::All => None,
            Jobs::Ids(ids) => Some(ids.iter().copied().collect()),
        };
        let hold = Hold { ids, told: HashMap::new(), events: Vec::new(), progress: HashMap::new() };
        // Who asks again is told again, from where a job stands: progress that waits would come in between.
        self.told.retain(|id, _| !hold.covers(*id));
        self.told.shrink_to(ROOM_KEPT);
        self.last = None;
        self.progress.retain(|id, _| !hold.covers(*id));
        self.waiting.retain(|id| !hold.covers(*id));
        self.hold = Some(Box::new(hold));
    }

    pub(super) fn release(&mut self) {
        let Some(mut hold) = self.hold.take() else { return };
        let events = std::mem::take(&mut hold.events);
        let progress = std::mem::take(&mut hold.progress);
        for frame in events.iter().chain(progress.values()) {
            // The same event may have been handed here twice: live, and because it was not known whether it had been.
            if hold.is_news(frame) {
                hold.told.insert(frame.job_id, frame.seq);
                self.accept(frame);
            }
        }
    }

    /// Drops unsent progress of jobs that are no longer watched.
    pub(super) fn forget(&mut self, jobs: &Jobs) {
        match jobs {
            Jobs::All => {
                self.progress = HashMap::new();
                self.waiting = VecDeque::new();
                self.rates = None;
            }
            Jobs::Ids(ids) => {
                for id in ids {
                    self.progress.remove(id);
                }
                self.waiting.retain(|id| !ids.contains(id));
                if let Some(rates) = &mut self.rates {
                    rates.forget(ids);
                }
            }
        }
    }

    pub(super) fn take_ended(&mut self) -> Vec<JobId> {
        let ended = std::mem::take(&mut self.ended);
        if let Some(rates) = &mut self.rates {
            rates.forget(&ended);
        }
        ended
    }

    pub(super) fn set_min_interval(&mut self, jobs: &Jobs, interval: Option<Duration>) {
        if interval.is_some() || self.rates.is_some() {
            self.rates.get_or_insert_default().set(jobs, interval);
        }
    }

    /// Whether nothing is to be taken, now or later.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.waiting.is_empty() && self.latest.is_empty() && self.closing.is_none()
    }

    pub(super) fn take_conflated(&mut self) -> u64 {
        std::mem::take(&mut self.conflated)
    }

    pub(super) fn close(&mut self, close: Close) {
        self.closing.get_or_insert(close);
    }

    pub(super) fn has_room(&self) -> bool {
        self.closing.is_some()
            || (self.events.len() <= self.bounds.messages / 2 && self.event_bytes <= self.bounds.bytes / 2)
    }

    /// Moves at most `most` frames, in the order in which they are to be written.
    pub(super) fn take(&mut self, most: usize, taken: &mut Vec<Outgoing>) -> Left {
        self.take_at(most, taken, Instant::now)
    }

    pub(super) fn take_at(
        &mut self,
        most: usize,
        taken: &mut Vec<Outgoing>,
        now: impl Fn() -> Instant,
    ) -> Left {
        let mut left = Left::default();
        let before = taken.len();
        taken.extend(self.events.drain(..most.min(self.events.len())));
        self.event_bytes -= taken[before..].iter().map(|it| it.wire.frame().len()).sum::<usize>();
        if self.events.is_empty() {
            if self.closing.is_none() {
                left.wake_at = self.take_progress(before + most, taken, now);
                while taken.len() < before + most
                    && let Some((_, wire)) = self.latest.pop_first()
                {
                    taken.push(Outgoing { wire, place: 0 });
                }
            }
            left.close = self.closing.filter(|_| taken.len() == before);
            if self.events.capacity() > ROOM_KEPT {
                self.events.shrink_to(ROOM_KEPT);
            }
        }
        left
    }

    /// Returns when the first update that is held back may go.
    fn take_progress(
        &mut self,
        most: usize,
        taken: &mut Vec<Outgoing>,
        now: impl Fn() -> Instant,
    ) -> Option<Instant> {
        let mut wake_at: Option<Instant> = None;
        for _ in 0..self.waiting.len() {
            if taken.len() >= most {
                break;
            }
            let Some(id) = self.waiting.pop_front() else { break };
            if !self.progress.contains_key(&id) {
                continue;
            }
            // Most clients ask for no rate, and reading the clock for each job would cost them.
            if let Some(due) = self.rates.as_mut().and_then(|rates| rates.not_before(id, &now)) {
                wake_at = Some(wake_at.map_or(due, |at| at.min(due)));
                self.waiting.push_back(id);
                continue;
            }
            taken.extend(self.progress.remove(&id).map(|wire| Outgoing { wire, place: 0 }));
        }
        if self.progress.is_empty() && self.progress.capacity() > ROOM_KEPT {
            self.progress.shrink_to(ROOM_KEPT);
            self.waiting.shrink_to(ROOM_KEPT);
        }
        wake_at
    }

    /// Gives up on a client for which too much waits: `of` what, `messages` or `bytes`, or messages for a `snapshot`.
    fn overflow(&mut self, of: &'static str) {
        metrics::counter!("stepcast_gateway_overflows_total", "of" => of).increment(1);
        self.close(close::TOO_SLOW);
        self.events = VecDeque::new();
        self.event_bytes = 0;
        self.waiting = VecDeque::new();
        self.progress = HashMap::new();
        self.latest = BTreeMap::new();
        self.hold = None;
    }
}

impl Hold {
    fn covers(&self, id: JobId) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(&id))
    }

    fn keep(&mut self, frame: &JobFrame) {
        match frame.class {
            Class::Event => {
                self.progress.remove(&frame.job_id);
                self.events.push(frame.clone());
            }
            Class::Progress => self.keep_latest(frame),
        }
    }

    fn keep_latest(&mut self, frame: &JobFrame) {
        if self.progress.get(&frame.job_id).is_none_or(|kept| kept.seq < frame.seq) {
            self.progress.insert(frame.job_id, frame.clone());
        }
    }

    /// Whether the snapshot has not told as much.
    fn is_news(&self, frame: &JobFrame) -> bool {
        self.told.get(&frame.job_id).is_none_or(|told| *told < frame.seq)
    }

    fn has_news_of(&self, id: JobId) -> bool {
        self.events.iter().any(|event| event.job_id == id && self.is_news(event))
    }
}
