//! The two lanes of an outbox, without a clock or a lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use stepcast_shared::ids::JobId;
use stepcast_shared::messages::EventSeq;

use super::{Bounds, Outgoing};
use crate::close::{self, Close};
use crate::frame::{Class, JobFrame};
use crate::protocol::Jobs;
use crate::ws::Wire;

/// How many ended jobs are remembered, so that a late copy of their last event is known as one.
const FINISHED_REMEMBERED: usize = 4_096;
/// How many jobs are remembered at all. Beyond it one is forgotten, at worst to be told twice.
const JOBS_REMEMBERED: usize = 65_536;
/// Room that an empty queue keeps, so that idle connections stay small after a burst.
const ROOM_KEPT: usize = 8;

#[derive(Debug)]
pub(super) struct Lanes {
    bounds: Bounds,
    /// Events and answers, in order.
    events: VecDeque<Outgoing>,
    event_bytes: usize,
    /// How far each job has come, with its unsent progress.
    tracks: HashMap<JobId, Track>,
    /// Jobs that may have unsent progress, the longest waiting first.
    waiting: VecDeque<JobId>,
    /// Ended jobs, the first first.
    finished: VecDeque<JobId>,
    newly_finished: Vec<JobId>,
    hold: Option<Box<Hold>>,
    /// Between two updates of a job that has no interval of its own.
    min_interval: Option<Duration>,
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

#[derive(Debug, Default)]
struct Track {
    /// The greatest place that was queued.
    reached: Option<EventSeq>,
    progress: Option<Wire>,
    /// Whether it stands in `waiting`.
    waits: bool,
    min_interval: Option<Duration>,
    /// Known only while an interval must be kept.
    progress_sent_at: Option<Instant>,
}

/// Live messages that wait for a snapshot.
#[derive(Debug)]
struct Hold {
    /// Which jobs; `None` for all.
    ids: Option<HashSet<JobId>>,
    events: Vec<JobFrame>,
    progress: HashMap<JobId, JobFrame>,
}

impl Lanes {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            events: VecDeque::new(),
            event_bytes: 0,
            tracks: HashMap::new(),
            waiting: VecDeque::new(),
            finished: VecDeque::new(),
            newly_finished: Vec::new(),
            hold: None,
            min_interval: None,
            closing: None,
            conflated: 0,
        }
    }

    pub(super) fn push(&mut self, wire: Wire, place: u64) {
        if self.closing.is_some() {
            return;
        }
        self.event_bytes += wire.frame().len();
        self.events.push_back(Outgoing { wire, place });
        if self.events.len() > self.bounds.messages || self.event_bytes > self.bounds.bytes {
            self.overflow();
        }
    }

    pub(super) fn live(&mut self, frame: &JobFrame) -> bool {
        let Some(hold) = self.hold.as_mut().filter(|hold| hold.covers(frame.job_id)) else {
            return self.accept(frame);
        };
        hold.keep(frame);
        if hold.events.len() > self.bounds.messages {
            self.overflow();
        }
        true
    }

    pub(super) fn accept(&mut self, frame: &JobFrame) -> bool {
        if self.closing.is_some() {
            return false;
        }
        if self.tracks.len() >= JOBS_REMEMBERED && !self.tracks.contains_key(&frame.job_id) {
            self.forget_any();
        }
        let track = self.tracks.entry(frame.job_id).or_default();
        if track.reached.is_some_and(|reached| reached.is_terminal() || reached >= frame.seq) {
            return false;
        }
        track.reached = Some(frame.seq);
        match frame.class {
            Class::Event => {
                self.conflated += u64::from(track.progress.take().is_some());
                if frame.is_terminal() {
                    self.finish(frame.job_id);
                }
                self.push(frame.wire.clone(), frame.place);
            }
            Class::Progress => {
                self.conflated += u64::from(track.progress.replace(frame.wire.clone()).is_some());
                if !std::mem::replace(&mut track.waits, true) {
                    self.waiting.push_back(frame.job_id);
                }
            }
        }
        true
    }

    pub(super) fn hold(&mut self, jobs: &Jobs) {
        // One request of a connection is served at a time, so at most one snapshot is being taken.
        let ids = match jobs {
            Jobs::All => None,
            Jobs::Ids(ids) => Some(ids.iter().copied().collect()),
        };
        self.hold = Some(Box::new(Hold { ids, events: Vec::new(), progress: HashMap::new() }));
    }

    pub(super) fn release(&mut self) {
        let Some(hold) = self.hold.take() else { return };
        for frame in hold.events.iter().chain(hold.progress.values()) {
            self.accept(frame);
        }
    }

    pub(super) fn forget(&mut self, jobs: &Jobs) {
        match jobs {
            Jobs::All => {
                self.tracks.clear();
                self.waiting.clear();
                self.finished.clear();
                self.newly_finished.clear();
            }
            Jobs::Ids(ids) => {
                for id in ids {
                    self.tracks.remove(id);
                }
                self.waiting.retain(|id| !ids.contains(id));
            }
        }
    }

    pub(super) fn forget_finished(&mut self, ids: &[JobId]) {
        for id in ids {
            if self.tracks.get(id).is_some_and(Track::has_ended) {
                self.tracks.remove(id);
            }
        }
    }

    pub(super) fn take_finished(&mut self) -> Vec<JobId> {
        std::mem::take(&mut self.newly_finished)
    }

    pub(super) fn set_min_interval(&mut self, jobs: &Jobs, interval: Option<Duration>) {
        match jobs {
            Jobs::All => self.min_interval = interval,
            Jobs::Ids(ids) => {
                for id in ids {
                    self.tracks.entry(*id).or_default().min_interval = interval;
                }
            }
        }
    }

    /// Whether something waits to be taken now or later.
    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty() && self.waiting.is_empty() && self.closing.is_none()
    }

    /// Whether live messages wait for a snapshot.
    pub(super) fn holds(&self) -> bool {
        self.hold.is_some()
    }

    /// Whether updates wait that a shared batch would overtake.
    pub(super) fn has_progress(&self) -> bool {
        !self.waiting.is_empty()
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
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            if track.progress.is_none() {
                track.waits = false;
                continue;
            }
            // Most clients ask for no rate, and reading the clock for each job would cost them.
            if let Some(interval) = track.min_interval.or(self.min_interval) {
                let now = now();
                if let Some(due) = track.progress_sent_at.map(|at| at + interval).filter(|due| *due > now) {
                    wake_at = Some(wake_at.map_or(due, |at| at.min(due)));
                    self.waiting.push_back(id);
                    continue;
                }
                track.progress_sent_at = Some(now);
            }
            track.waits = false;
            taken.extend(track.progress.take().map(|wire| Outgoing { wire, place: 0 }));
        }
        wake_at
    }

    fn finish(&mut self, id: JobId) {
        self.newly_finished.push(id);
        self.finished.push_back(id);
        if self.finished.len() > FINISHED_REMEMBERED
            && let Some(first) = self.finished.pop_front()
            && self.tracks.get(&first).is_some_and(Track::has_ended)
        {
            self.tracks.remove(&first);
        }
        // Nobody asks for it while the connection watches all jobs; what is left out is merely not tidied up.
        self.newly_finished.truncate(FINISHED_REMEMBERED);
    }

    fn forget_any(&mut self) {
        let any = self.tracks.iter().find(|(_, track)| track.progress.is_none()).map(|(id, _)| *id);
        if let Some(id) = any {
            self.tracks.remove(&id);
        }
    }

    fn overflow(&mut self) {
        metrics::counter!("stepcast_gateway_overflows_total").increment(1);
        self.close(close::TOO_SLOW);
        self.events = VecDeque::new();
        self.event_bytes = 0;
        self.waiting = VecDeque::new();
        self.tracks = HashMap::new();
        self.hold = None;
    }
}

impl Track {
    fn has_ended(&self) -> bool {
        self.reached.is_some_and(EventSeq::is_terminal)
    }
}

impl Hold {
    fn covers(&self, id: JobId) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.contains(&id))
    }

    fn keep(&mut self, frame: &JobFrame) {
        match frame.class {
            Class::Event => self.events.push(frame.clone()),
            Class::Progress => {
                let newest = self.progress.entry(frame.job_id).or_insert_with(|| frame.clone());
                if newest.seq < frame.seq {
                    *newest = frame.clone();
                }
            }
        }
    }
}
