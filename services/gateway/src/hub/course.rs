//! The hub's table and the outboxes behind it, through any course of what may happen to them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::EventSeq;

use super::table::{MemberId, Table};
use crate::frame::{Class, JobFrame};
use crate::fuzz::life::Life;
use crate::outbox::{Bounds, Outbox, Round};
use crate::protocol::Jobs;
use crate::ws::Wire;

const JOBS: usize = 2;
const CLIENTS: usize = 3;
/// More than a course fills: what becomes of those who are too slow is not asked here.
const BOUNDS: Bounds = Bounds { messages: 1_000_000, bytes: 1_000_000_000 };

/// Whatever NATS loses, delays or tells again, and whenever clients ask: each is told of the jobs that it watches alone,
/// of each in order and nothing twice, except where it asks again; and in the end it is told the last event of each.
///
/// A byte is a step: what happens, and to which job or client.
pub fn hub(steps: &[u8]) {
    let mut course = Course::new();
    for step in steps {
        let job = usize::from(step >> 4) % JOBS;
        let client = usize::from(step >> 5 & 3) % CLIENTS;
        let comes_back = step >> 5 & 3 == 3;
        let flag = *step >= 0x80;
        match step & 0xf {
            0 | 1 => course.progress(job),
            2 | 3 => course.event(job, flag),
            4..=6 => course.arrive(if flag { usize::MAX } else { 1 }),
            7 => course.lose(),
            8 => course.close_gap(),
            9 => course.reread(flag),
            10 => course.ask(client, if flag { None } else { Some(job) }, comes_back),
            11 => course.read(client, if flag { Reading::Behind } else { Reading::Newest }),
            12 => course.read(client, Reading::Failed),
            13 => course.tell(client, flag),
            14 => course.take(client),
            _ if flag => course.sweep(),
            _ => course.unwatch(client, job),
        }
    }
    course.finish();
}

struct Course {
    table: Table,
    owner: Owner,
    jobs: [Job; JOBS],
    clients: [Client; CLIENTS],
    newest_member: MemberId,
    /// What was published and has not arrived.
    under_way: VecDeque<JobFrame>,
    /// Events that never arrived.
    lost: Vec<JobFrame>,
}

struct Job {
    id: JobId,
    life: Life,
}

struct Client {
    member: MemberId,
    outbox: Arc<Outbox>,
    watches_all: bool,
    watched: HashSet<JobId>,
    asking: Option<Asking>,
    answers: usize,
    read_answers: usize,
    /// What each question to which it has heard no answer begins anew, and of which jobs it is then told where they stand.
    questions: VecDeque<(Jobs, Vec<JobId>)>,
    /// The last that it heard of each job since it asked for it.
    heard: HashMap<JobId, EventSeq>,
    /// How far it has been told of each job since an answer was due.
    told: HashMap<JobId, EventSeq>,
    /// Jobs whose last event it is to be told: it asked for them, or for all and they had not ended.
    due: HashSet<JobId>,
}

/// A question that is being answered; what is live waits.
struct Asking {
    jobs: Jobs,
    /// How many events of each job were recorded when it was asked.
    recorded: [usize; JOBS],
    /// How many of them the client has had, if it asks for those that it missed.
    since: Option<[usize; JOBS]>,
    answer: Answer,
}

enum Answer {
    Unread,
    Read { reading: Reading, ids: Vec<JobId>, events: Vec<JobFrame> },
    Told,
}

/// What an answer is made of.
#[derive(Clone, Copy, PartialEq)]
enum Reading {
    /// The last event of each job.
    Newest,
    /// The same from a replica that lacks the last event before the question, and all since.
    Behind,
    /// Every event that the client has not had; this reading always comes about.
    Missed,
    /// Nothing could be read.
    Failed,
}

impl Course {
    fn new() -> Self {
        let job = || Job { id: JobId::mint(), life: Life::default() };
        Self {
            table: Table::default(),
            owner: Owner::anonymous(),
            jobs: [job(), job()],
            clients: [0, 1, 2].map(Client::new),
            newest_member: 2,
            under_way: VecDeque::new(),
            lost: Vec::new(),
        }
    }

    fn progress(&mut self, job: usize) {
        if let Some(seq) = self.jobs[job].life.progress() {
            self.publish(job, seq, Class::Progress);
        }
    }

    fn event(&mut self, job: usize, ends: bool) {
        if let Some(seq) = self.jobs[job].life.event(ends) {
            for client in self.clients.iter_mut().filter(|it| it.watches_all) {
                client.due.insert(self.jobs[job].id);
            }
            self.publish(job, seq, Class::Event);
        }
    }

    fn publish(&mut self, job: usize, seq: EventSeq, class: Class) {
        let frame = frame(self.jobs[job].id, seq, class);
        // Otherwise nothing is subscribed to that it would arrive by.
        if self.is_watched(frame.job_id) {
            self.under_way.push_back(frame);
        }
    }

    fn is_watched(&self, id: JobId) -> bool {
        self.clients.iter().any(|client| client.watches(id))
    }

    fn arrive(&mut self, most: usize) {
        let many = self.under_way.len().min(most);
        for frame in self.under_way.drain(..many) {
            self.table.deliver(&self.owner, &frame, &mut Round::default());
        }
    }

    fn lose(&mut self) {
        self.lost.extend(self.under_way.drain(..).filter(|frame| frame.class == Class::Event));
    }

    /// What was recorded during an outage is read in its order.
    fn close_gap(&mut self) {
        for frame in self.lost.drain(..) {
            self.table.deliver(&self.owner, &frame, &mut Round::default());
        }
    }

    /// What is due is read again, or the event before it by a replica that is behind.
    fn reread(&mut self, is_behind: bool) {
        let active = self.active();
        self.table.note(&self.owner, &active, None, Instant::now());
        for (owner, ids) in self.table.due(Instant::now() + Duration::from_mins(1), usize::MAX) {
            for id in ids {
                let events = &self.job(id).life.events;
                let read = events.len().checked_sub(if is_behind { 2 } else { 1 });
                if let Some(seq) = read.map(|index| events[index]) {
                    self.table.deliver(&owner, &frame(id, seq, Class::Event), &mut Round::default());
                }
            }
        }
    }

    fn active(&self) -> Vec<JobId> {
        let is_active = |job: &&Job| job.life.events.last().is_some_and(|seq| !seq.is_terminal());
        self.jobs.iter().filter(is_active).map(|job| job.id).collect()
    }

    fn job(&self, id: JobId) -> &Job {
        self.jobs.iter().find(|job| job.id == id).expect("there are no others")
    }

    fn ask(&mut self, client: usize, job: Option<usize>, comes_back: bool) {
        // One question of a connection is answered at a time.
        self.tell(client, false);
        let since = comes_back.then(|| self.come_back(client));
        let recorded = std::array::from_fn(|job| self.jobs[job].life.events.len());
        let jobs = job.map_or(Jobs::All, |job| Jobs::Ids(vec![self.jobs[job].id]));
        let active = self.active();
        let Self { table, owner, clients, .. } = self;
        let client = &mut clients[client];
        client.outbox.hold(&jobs);
        let due = match &jobs {
            Jobs::All => {
                table.watch_all(owner, client.member, &client.outbox, false, Instant::now());
                client.watches_all = true;
                active
            }
            Jobs::Ids(ids) => {
                for id in ids {
                    table.watch_job(owner, *id, client.member, &client.outbox, Instant::now());
                }
                client.watched.extend(ids);
                ids.clone()
            }
        };
        client.due.extend(&due);
        if comes_back {
            client.answer("back");
        } else {
            client.questions.push_back((jobs.clone(), due));
            client.answer("asked");
        }
        client.asking = Some(Asking { jobs, recorded, since, answer: Answer::Unread });
    }

    /// The client has another connection, and what was on its way to it is gone. Returns how many events of each job it
    /// has had.
    fn come_back(&mut self, client: usize) -> [usize; JOBS] {
        let now = Instant::now();
        self.newest_member += 1;
        let left = &mut self.clients[client];
        let come = Client { told: std::mem::take(&mut left.told), ..Client::new(self.newest_member) };
        let left = std::mem::replace(left, come);
        self.table.unwatch_all(&self.owner, left.member, now);
        for id in left.watched {
            self.table.unwatch_job(&self.owner, id, left.member, now);
        }
        let client = &mut self.clients[client];
        std::array::from_fn(|job| {
            let Job { id, life: Life { events, .. } } = &self.jobs[job];
            let had = events.iter().filter(|seq| Some(*seq) <= client.told.get(id));
            // Of a job that the table does not know the last event comes once more: it may have been told elsewhere.
            let is_known = |last: &&EventSeq| self.table.reached(&self.owner, *id) >= Some(**last);
            let last = had.clone().next_back().filter(is_known);
            client.heard.extend(last.map(|seq| (*id, *seq)));
            had.count()
        })
    }

    fn read(&mut self, client: usize, reading: Reading) {
        let active = self.active();
        let client = &mut self.clients[client];
        let Some(asking) = &mut client.asking else { return };
        let Answer::Unread = asking.answer else { return };
        let reading = if asking.since.is_some() { Reading::Missed } else { reading };
        let ids = match &asking.jobs {
            Jobs::Ids(ids) => {
                if reading != Reading::Missed {
                    self.table.doubt(&self.owner, ids, client.member);
                }
                ids.clone()
            }
            Jobs::All => {
                // Who is told everything that it missed is not told where the active jobs stand.
                let told = (reading != Reading::Missed).then_some(client.member);
                self.table.note(&self.owner, &active, told, Instant::now());
                active
            }
        };
        let mut events = Vec::new();
        let since = asking.since.unwrap_or_default();
        for ((job, recorded), had) in self.jobs.iter().zip(asking.recorded).zip(since) {
            let all = &job.life.events;
            let known = match reading {
                Reading::Newest => &all[all.len().saturating_sub(1)..],
                Reading::Behind => &all[recorded.saturating_sub(2)..recorded.saturating_sub(1)],
                Reading::Missed => &all[had..],
                Reading::Failed => &[],
            };
            let is_asked = match &asking.jobs {
                Jobs::All => reading == Reading::Missed || ids.contains(&job.id),
                Jobs::Ids(ids) => ids.contains(&job.id),
            };
            events.extend(known.iter().filter(|_| is_asked).map(|seq| frame(job.id, *seq, Class::Event)));
        }
        asking.answer = Answer::Read { reading, ids, events };
    }

    /// Tells what was read, and, unless it `waits`, what was held back behind it.
    fn tell(&mut self, client: usize, waits: bool) {
        self.read(client, Reading::Newest);
        let client = &mut self.clients[client];
        let Some(asking) = &mut client.asking else { return };
        if let Answer::Read { reading, mut ids, events } = std::mem::replace(&mut asking.answer, Answer::Told)
            && reading != Reading::Failed
        {
            if reading == Reading::Missed {
                for event in &events {
                    client.outbox.snapshot(event);
                }
                ids.extend(events.iter().map(|event| event.job_id));
            }
            let last: HashMap<_, _> = events.into_iter().map(|event| (event.job_id, event)).collect();
            let mut round = Round::default();
            let progress = self.table.settle(&self.owner, client.member, &ids, &last, &mut round);
            for id in ids {
                let event = last.get(&id).filter(|_| reading != Reading::Missed);
                for frame in [event, progress.get(&id)].into_iter().flatten() {
                    client.outbox.snapshot(frame);
                }
            }
        }
        if !waits {
            client.asking = None;
            client.outbox.release();
        }
    }

    fn unwatch(&mut self, client: usize, job: usize) {
        self.tell(client, false);
        let (id, now) = (self.jobs[job].id, Instant::now());
        let client = &mut self.clients[client];
        if client.watched.remove(&id) {
            self.table.unwatch_job(&self.owner, id, client.member, now);
            if !client.watches_all {
                client.outbox.forget(&Jobs::Ids(vec![id]));
            }
            // Who still watches it among all others is owed what comes, and no longer the answer to this question.
            client.due.remove(&id);
        } else if client.watches_all {
            self.table.unwatch_all(&self.owner, client.member, now);
            client.watches_all = false;
            for id in client.watched.drain() {
                self.table.unwatch_job(&self.owner, id, client.member, now);
            }
            client.outbox.forget(&Jobs::All);
        }
        let Client { due, watches_all, watched, .. } = client;
        due.retain(|id| *watches_all || watched.contains(id));
        client.answer("unwatched");
    }

    fn sweep(&mut self) {
        self.table.take_idle(Instant::now() + Duration::from_mins(1), Duration::from_secs(1));
    }

    fn take(&mut self, client: usize) {
        let latest: HashMap<JobId, Option<EventSeq>> =
            self.jobs.iter().map(|job| (job.id, job.life.latest)).collect();
        let client = &mut self.clients[client];
        while let Some((frames, close)) = client.outbox.next().now_or_never() {
            assert!(close.is_none(), "nobody said goodbye");
            for frame in frames {
                let text = std::str::from_utf8(frame.wire.payload()).expect("only text is queued");
                let (word, number) = text.split_once(' ').expect("two words");
                match word.parse() {
                    Ok(id) => client.hears(id, number.parse().expect("a place"), latest[&id]),
                    Err(_) => client.hears_answer(word, number.parse().expect("a number")),
                }
            }
        }
    }

    fn finish(mut self) {
        for client in 0..CLIENTS {
            self.tell(client, false);
        }
        self.arrive(usize::MAX);
        self.close_gap();
        self.reread(false);
        for client in 0..CLIENTS {
            self.take(client);
            let Client { told, due, .. } = &self.clients[client];
            for id in due {
                let last = self.job(*id).life.events.last();
                assert!(told.get(id) >= last, "client {client} was told {:?}, not {last:?}", told.get(id));
            }
        }
    }
}

impl Client {
    fn new(member: MemberId) -> Self {
        Self {
            member,
            outbox: Arc::new(Outbox::of_reader(BOUNDS)),
            watches_all: false,
            watched: HashSet::new(),
            asking: None,
            answers: 0,
            read_answers: 0,
            questions: VecDeque::new(),
            heard: HashMap::new(),
            told: HashMap::new(),
            due: HashSet::new(),
        }
    }

    fn watches(&self, id: JobId) -> bool {
        self.watches_all || self.watched.contains(&id)
    }

    fn answer(&mut self, word: &str) {
        self.outbox.answer(Wire::text(&format!("{word} {}", self.answers)));
        self.answers += 1;
    }

    fn hears(&mut self, id: JobId, seq: EventSeq, latest: Option<EventSeq>) {
        let heard = self.heard.insert(id, seq);
        assert!(heard < Some(seq), "{seq} comes behind {heard:?}");
        self.told.insert(id, seq);
        assert!(Some(seq) <= latest, "{seq} was never said");
        assert!(self.watches(id) || self.answers > self.read_answers, "it was not asked for");
    }

    fn hears_answer(&mut self, word: &str, number: usize) {
        assert_eq!(number, self.read_answers, "answers come in order, each once");
        self.read_answers += 1;
        if word == "asked" {
            let (jobs, due) = self.questions.pop_front().expect("it was asked");
            match jobs {
                Jobs::All => self.heard.clear(),
                Jobs::Ids(ids) => self.heard.retain(|id, _| !ids.contains(id)),
            }
            self.told.retain(|id, _| !due.contains(id));
        }
    }
}

fn frame(job_id: JobId, seq: EventSeq, class: Class) -> JobFrame {
    JobFrame { job_id, class, seq, place: 0, wire: Wire::text(&format!("{job_id} {seq}")) }
}
