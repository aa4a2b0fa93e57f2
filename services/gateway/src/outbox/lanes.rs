//! The two lanes of an outbox, without a clock or a lock.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use axum::extract::ws::{Message, Utf8Bytes};
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::EventSeq;

use super::{Batch, Bounds};
use crate::close::{self, Close};
use crate::frame::{Class, JobFrame};
use crate::protocol::Jobs;

/// How many ended jobs are remembered, so that a late copy of their last event is known as one.
const FINISHED_REMEMBERED: usize = 4_096;
/// How many jobs are remembered at all. Beyond it one is forgotten, at worst to be told twice.
const JOBS_REMEMBERED: usize = 65_536;

#[derive(Debug)]
pub(super) struct Lanes {
    bounds: Bounds,
    /// Events and answers, in order.
    events: VecDeque<Message>,
    event_bytes: usize,
    /// How far each job has come, with its unsent progress.
    tracks: HashMap<JobId, Track>,
    /// Jobs that may have unsent progress, the longest waiting first.
    waiting: VecDeque<JobId>,
    /// Ended jobs, the first first.
    finished: VecDeque<JobId>,
    newly_finished: Vec<JobId>,
    hold: Option<Hold>,
    min_interval: Option<Duration>,
    closing: Option<Close>,
}

#[derive(Debug)]
struct Track {
    /// The greatest place that was queued.
    reached: EventSeq,
    progress: Option<Utf8Bytes>,
    /// Whether it stands in `waiting`.
    waits: bool,
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
        }
    }

    pub(super) fn push(&mut self, message: Message) {
        if self.closing.is_some() {
            return;
        }
        self.event_bytes += size(&message);
        self.events.push_back(message);
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
        let known = self.tracks.get(&frame.job_id).map(|track| track.reached);
        if known.is_some_and(|reached| reached.is_terminal() || reached >= frame.seq) {
            return false;
        }
        if known.is_none() && self.tracks.len() >= JOBS_REMEMBERED {
            self.forget_any();
        }
        let track = self.tracks.entry(frame.job_id).or_insert_with(Track::new);
        track.reached = frame.seq;
        match frame.class {
            Class::Event => {
                if track.progress.take().is_some() {
                    count_conflated();
                }
                if frame.is_terminal() {
                    self.finish(frame.job_id);
                }
                self.push(Message::Text(frame.text.clone()));
            }
            Class::Progress => {
                if track.progress.replace(frame.text.clone()).is_some() {
                    count_conflated();
                }
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
        self.hold = Some(Hold { ids, events: Vec::new(), progress: HashMap::new() });
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
            if self.tracks.get(id).is_some_and(|track| track.reached.is_terminal()) {
                self.tracks.remove(id);
            }
        }
    }

    pub(super) fn take_finished(&mut self) -> Vec<JobId> {
        std::mem::take(&mut self.newly_finished)
    }

    pub(super) fn set_min_interval(&mut self, interval: Duration) {
        self.min_interval = Some(interval);
    }

    pub(super) fn close(&mut self, close: Close) {
        self.closing.get_or_insert(close);
    }

    pub(super) fn has_room(&self) -> bool {
        self.closing.is_some()
            || (self.events.len() <= self.bounds.messages / 2 && self.event_bytes <= self.bounds.bytes / 2)
    }

    pub(super) fn take(&mut self, most: usize, now: Instant) -> Batch {
        let mut batch = Batch::default();
        while batch.frames.len() < most
            && let Some(message) = self.events.pop_front()
        {
            self.event_bytes -= size(&message);
            batch.frames.push(message);
        }
        if self.events.is_empty() {
            self.take_progress(most, now, &mut batch);
            batch.close = self.closing.filter(|_| batch.frames.is_empty());
        }
        batch
    }

    fn take_progress(&mut self, most: usize, now: Instant, batch: &mut Batch) {
        if self.closing.is_some() {
            return;
        }
        for _ in 0..self.waiting.len() {
            if batch.frames.len() >= most {
                return;
            }
            let Some(id) = self.waiting.pop_front() else { return };
            let Some(track) = self.tracks.get_mut(&id) else { continue };
            if track.progress.is_none() {
                track.waits = false;
                continue;
            }
            let due = self.min_interval.and_then(|interval| Some(track.progress_sent_at? + interval));
            if let Some(due) = due.filter(|due| *due > now) {
                batch.wake_at = Some(batch.wake_at.map_or(due, |at| at.min(due)));
                self.waiting.push_back(id);
                continue;
            }
            track.waits = false;
            track.progress_sent_at = Some(now);
            batch.frames.extend(track.progress.take().map(Message::Text));
        }
    }

    fn finish(&mut self, id: JobId) {
        self.newly_finished.push(id);
        self.finished.push_back(id);
        if self.finished.len() > FINISHED_REMEMBERED
            && let Some(first) = self.finished.pop_front()
            && self.tracks.get(&first).is_some_and(|track| track.reached.is_terminal())
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
    fn new() -> Self {
        Self { reached: EventSeq::default(), progress: None, waits: false, progress_sent_at: None }
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

fn size(message: &Message) -> usize {
    match message {
        Message::Text(text) => text.len(),
        _ => 0,
    }
}

fn count_conflated() {
    metrics::counter!("stepcast_gateway_conflated_total").increment(1);
}
