//! An outbox through any course of what may happen to it.

use futures_util::FutureExt as _;
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::EventSeq;

use super::life::Life;
use crate::close;
use crate::frame::{Class, JobFrame};
use crate::outbox::{Bounds, Outbox};
use crate::protocol::Jobs;
use crate::ws::Wire;

const JOBS: usize = 3;
const BOUNDS: Bounds = Bounds { messages: 8, bytes: 600 };

/// What the client is told of each job grows, except where it asks again; answers come in order and none is left out;
/// what waits is bounded; and unless the client is closed, it is told how far each job has come in the end.
///
/// A byte is a step: what happens, and to which job. Rates are left out, as they hang on the clock.
pub fn outbox(steps: &[u8]) {
    let mut course = Course::new();
    for step in steps {
        let job = usize::from(step >> 4) % JOBS;
        match step & 0xf {
            0..=4 => course.progress(job),
            5..=7 => course.event(job, *step >= 0x80),
            8 => course.again(job),
            9 => course.ask(job, *step >= 0x80),
            10 | 11 => course.snapshot(job, *step >= 0x80),
            12 => course.release(),
            13 => course.answer("answer"),
            14 => course.take(),
            _ if *step >= 0xf0 => course.outbox.close(close::NORMAL),
            _ => course.forget(job),
        }
    }
    course.finish();
}

/// One connection, the jobs that it watches, and what its client has read.
struct Course {
    outbox: Outbox,
    jobs: [Job; JOBS],
    /// The jobs that were asked for and whose snapshot is being taken.
    asked: Option<Vec<usize>>,
    /// The last news.
    last: Option<(usize, EventSeq)>,
    answers: usize,
    read_answers: usize,
    /// What each answer that asks again resets, by its number.
    resets: Vec<Vec<usize>>,
    is_closed: bool,
}

struct Job {
    id: JobId,
    life: Life,
    /// Its last recorded message when it was asked for.
    event_when_asked: Option<EventSeq>,
    /// How far the client has been told since it asked, and ever.
    told: Option<EventSeq>,
    ever_told: Option<EventSeq>,
    /// Whether progress may have been dropped, because nobody watched or the snapshot tells it.
    is_forgotten: bool,
    /// Whether there was no news since it was asked for: then alone it may be handed over what it was told.
    is_unsure: bool,
}

impl Course {
    fn new() -> Self {
        let job = || Job {
            id: JobId::mint(),
            life: Life::default(),
            event_when_asked: None,
            told: None,
            ever_told: None,
            is_forgotten: false,
            is_unsure: true,
        };
        Self {
            outbox: Outbox::of_reader(BOUNDS),
            jobs: [job(), job(), job()],
            asked: None,
            last: None,
            answers: 0,
            read_answers: 0,
            resets: Vec::new(),
            is_closed: false,
        }
    }

    fn progress(&mut self, job: usize) {
        if let Some(seq) = self.jobs[job].life.progress() {
            self.news(job, seq, Class::Progress);
        }
    }

    fn event(&mut self, job: usize, ends: bool) {
        if let Some(seq) = self.jobs[job].life.event(ends) {
            self.news(job, seq, Class::Event);
        }
    }

    /// What was recorded last is handed over again: it was read again, or is watched in two ways.
    fn again(&mut self, job: usize) {
        let Job { life, is_unsure, .. } = &self.jobs[job];
        let Some(&seq) = life.events.last().filter(|seq| life.latest == Some(**seq)) else { return };
        if *is_unsure {
            self.last = None;
            self.outbox.again(&self.frame(job, seq, Class::Event));
        } else if self.last == Some((job, seq)) {
            self.news(job, seq, Class::Event);
        }
    }

    /// The client asks for one job, or for all.
    fn ask(&mut self, job: usize, all: bool) {
        self.release();
        let asked: Vec<usize> = if all { (0..JOBS).collect() } else { vec![job] };
        let jobs = if all { Jobs::All } else { Jobs::Ids(vec![self.jobs[job].id]) };
        self.outbox.hold(&jobs);
        self.last = None;
        for &job in &asked {
            let job = &mut self.jobs[job];
            job.event_when_asked = job.life.events.last().copied();
            job.is_forgotten = true;
            job.is_unsure = true;
        }
        self.resets.push(asked.clone());
        self.answer("asked");
        self.asked = Some(asked);
    }

    /// The stream tells where a job stands that was asked for: now, or when it was asked.
    fn snapshot(&mut self, job: usize, is_late: bool) {
        if !self.asked.as_ref().is_some_and(|asked| asked.contains(&job)) {
            return;
        }
        let Job { life: Life { events, latest }, event_when_asked, .. } = &self.jobs[job];
        let (latest, recorded) = (*latest, if is_late { events.last().copied() } else { *event_when_asked });
        let Some(recorded) = recorded else { return };
        self.outbox.snapshot(&self.frame(job, recorded, Class::Event));
        if let Some(latest) = latest.filter(|latest| is_late && *latest > recorded) {
            self.outbox.snapshot(&self.frame(job, latest, Class::Progress));
        }
        // Once is enough.
        if let Some(asked) = &mut self.asked {
            asked.retain(|it| *it != job);
        }
    }

    fn release(&mut self) {
        self.asked = None;
        self.outbox.release();
    }

    fn forget(&mut self, job: usize) {
        if self.asked.is_none() {
            self.jobs[job].is_forgotten = true;
            self.outbox.forget(&Jobs::Ids(vec![self.jobs[job].id]));
        }
    }

    fn answer(&mut self, word: &str) {
        self.outbox.answer(Wire::text(&format!("{word} {}", self.answers)));
        self.answers += 1;
    }

    fn news(&mut self, job: usize, seq: EventSeq, class: Class) {
        self.jobs[job].is_forgotten = false;
        self.jobs[job].is_unsure = false;
        self.last = Some((job, seq));
        self.outbox.news(&self.frame(job, seq, class));
    }

    fn frame(&self, job: usize, seq: EventSeq, class: Class) -> JobFrame {
        let wire = Wire::text(&format!("{job} {seq}"));
        JobFrame { job_id: self.jobs[job].id, class, seq, place: 0, wire }
    }

    /// The client reads what waits, and checks it.
    fn take(&mut self) {
        let Some((frames, close)) = self.outbox.next().now_or_never() else { return };
        assert!(!self.is_closed || frames.is_empty(), "something follows a goodbye");
        assert!(frames.len() <= BOUNDS.messages + JOBS, "{} frames wait", frames.len());
        for frame in &frames {
            let text = std::str::from_utf8(frame.wire.payload()).expect("only text is queued");
            let (subject, number) = text.split_once(' ').expect("two words");
            match subject.parse::<usize>() {
                Ok(job) => self.jobs[job].hears(number.parse().expect("a place")),
                Err(_) => self.hears_answer(subject == "asked", number.parse().expect("a number")),
            }
        }
        self.is_closed |= close.is_some();
    }

    fn hears_answer(&mut self, is_reset: bool, number: usize) {
        assert_eq!(number, self.read_answers, "answers come in order, each once");
        self.read_answers += 1;
        if is_reset {
            for job in self.resets.remove(0) {
                self.jobs[job].told = None;
            }
        }
    }

    fn finish(mut self) {
        self.release();
        // The second call finds the goodbye, if there is one.
        self.take();
        self.take();
        if self.is_closed {
            return;
        }
        assert_eq!(self.read_answers, self.answers, "an answer is lost");
        for (number, job) in self.jobs.iter().enumerate() {
            let least = if job.is_forgotten { job.life.events.last().copied() } else { job.life.latest };
            assert!(job.ever_told >= least, "job {number} is at {least:?}, and {:?} was told", job.ever_told);
        }
    }
}

impl Job {
    fn hears(&mut self, seq: EventSeq) {
        assert!(self.told < Some(seq), "{seq} comes behind {:?}", self.told);
        assert!(Some(seq) <= self.life.latest, "{seq} was never said");
        self.told = Some(seq);
        self.ever_told = self.ever_told.max(Some(seq));
    }
}
