//! A client with habits: it comes, reads, stalls, leaves, comes back somewhere else, and keeps everything it was told.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, Utc};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::EventSeq;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::tap::{Heard, Tap};

/// How long a watcher that lacks something stays once everything has ended.
const STAYS: Duration = Duration::from_mins(1);
/// Longest pause of who does not want to be away.
const HASTE: Duration = Duration::from_millis(60);
/// How long it goes on listening once it lacks nothing: what comes then comes twice.
const LINGERS: Duration = Duration::from_millis(500);

/// What all watchers share.
pub struct World {
    /// Those that take clients.
    pub gateways: Mutex<Vec<SocketAddr>>,
    /// The jobs that may be watched; there are others, of somebody else.
    pub jobs: HashSet<JobId>,
    /// The furthest place in the stream that is known to be taken.
    pub recorded: AtomicU64,
    /// Where the end of each ended job stands in the stream.
    pub ended: Mutex<HashMap<JobId, u64>>,
    /// Longest pause between two visits.
    pub away: Duration,
    /// Nothing more happens.
    pub over: CancellationToken,
}

/// How a watcher behaves.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "habits are had or not, each by itself")]
pub struct Habits {
    /// `None` for all jobs.
    pub ids: Option<Vec<JobId>>,
    pub batch: bool,
    /// Reads server-sent events.
    pub events: bool,
    /// Leaves only when it is sent away.
    pub is_loyal: bool,
    pub is_narrow: bool,
    pub max_rate: Option<f64>,
}

/// What a watcher was told, and what must be true of it.
#[derive(Debug, Default)]
pub struct Report {
    pub name: String,
    pub wanted: HashSet<JobId>,
    /// Ends recorded behind this place are owed to it.
    pub owed_from: u64,
    pub told: HashMap<(JobId, EventSeq), Value>,
    /// The jobs whose end it was told.
    pub ended: HashSet<JobId>,
    pub recoveries: Vec<Recovery>,
    pub resumes: Vec<Resume>,
    pub faults: Vec<String>,
    pub visits: usize,
    /// The last visit, in words.
    pub last_visit: String,
    pub lost_ground: usize,
}

/// It was said that nothing is missing.
#[derive(Debug)]
pub struct Recovery {
    pub from: From,
    /// What was recorded up to here had been asked for.
    pub until: u64,
    pub told: HashSet<(JobId, EventSeq)>,
}

/// From where on something was asked for.
#[derive(Clone, Debug)]
pub enum From {
    Time(DateTime<Utc>),
    Place(u64),
}

/// It would have come back with this id: whatever ended before it was never told again.
#[derive(Debug)]
pub struct Resume {
    pub owed_from: u64,
    pub place: u64,
    pub ended: HashSet<JobId>,
}

pub struct Watcher {
    habits: Habits,
    world: Arc<World>,
    rng: StdRng,
    report: Report,
    last_time: Option<String>,
    last_id: Option<u64>,
}

/// One connection.
#[derive(Debug)]
struct Visit {
    address: SocketAddr,
    heard: usize,
    /// What was told, with its number.
    log: Vec<(usize, JobId, EventSeq)>,
    resumed: Option<From>,
    is_confirmed: bool,
    /// The furthest of each job.
    reached: HashMap<JobId, EventSeq>,
    /// Jobs that are watched no longer.
    left: HashSet<JobId>,
    /// The latest time in what was read, until the beginning is known to have been read whole.
    latest: Option<String>,
    is_whole: bool,
    /// It was said that the snapshot lacks something for now.
    is_truncated: bool,
    /// What was said to be whole, until it can be known that it was.
    claim: Option<Recovery>,
    /// What was recorded when it was asked for.
    asked_at: u64,
}

impl Watcher {
    pub fn new(name: String, seed: u64, habits: Habits, world: Arc<World>) -> Self {
        let wanted =
            habits.ids.as_ref().map_or_else(|| world.jobs.clone(), |ids| ids.iter().copied().collect());
        let report = Report { name, wanted, ..Report::default() };
        Self { habits, world, rng: StdRng::seed_from_u64(seed), report, last_time: None, last_id: None }
    }

    /// Comes and goes until everything is over, then stays until it has been told every end that it is owed.
    pub async fn run(mut self) -> Report {
        let mut end = None;
        loop {
            self.visit(&mut end).await;
            if end.is_some_and(|end| Instant::now() >= end || self.report.missing(&self.world).is_empty()) {
                return self.report;
            }
            let most = if self.habits.is_loyal || end.is_some() { HASTE } else { self.world.away };
            sleep(most.mul_f64(self.rng.random())).await;
        }
    }

    /// One connection. `end` is when to give up, once everything is over.
    async fn visit(&mut self, end: &mut Option<Instant>) {
        let Some((mut tap, mut visit)) = self.open().await else { return };
        self.report.visits += 1;
        let over = self.world.over.clone();
        let leaves_after = Duration::from_millis(self.rng.random_range(50..2_500));
        let leave_at = Instant::now() + leaves_after;
        let mut stall_at = Instant::now() + self.some_time();
        let mut fidget_at = Instant::now() + self.some_time();
        let is_loyal = self.habits.is_loyal;
        loop {
            if end.is_some() && !visit.left.is_empty() {
                break;
            }
            let until = end.unwrap_or(leave_at);
            tokio::select! {
                heard = tap.next() => match heard {
                    Some(heard) => self.take(&heard, &mut visit),
                    None => break,
                },
                () = over.cancelled(), if end.is_none() => *end = Some(Instant::now() + STAYS),
                () = sleep_until(until), if end.is_some() || !is_loyal => break,
                () = sleep_until(stall_at), if end.is_none() => {
                    sleep(Duration::from_millis(self.rng.random_range(100..1_500))).await;
                    stall_at = Instant::now() + self.some_time();
                }
                () = sleep_until(fidget_at), if end.is_none() && !self.habits.events => {
                    self.fidget(&mut tap, &mut visit).await;
                    fidget_at = Instant::now() + self.some_time();
                }
            }
            if let Some(end) = end
                && visit.is_confirmed
                && self.report.missing(&self.world).is_empty()
            {
                *end = (*end).min(Instant::now() + LINGERS);
            }
        }
        self.report.last_visit = visit.to_string();
        if let Some(place) = self.last_id {
            let Report { owed_from, ref ended, .. } = self.report;
            self.report.resumes.push(Resume { owed_from, place, ended: ended.clone() });
        }
    }

    async fn open(&mut self) -> Option<(Tap, Visit)> {
        let address = *self.world.gateways.lock().unwrap().choose(&mut self.rng)?;
        let resumes = self.report.visits > 0 && self.rng.random_bool(0.85);
        let asked_at = self.world.recorded.load(Ordering::SeqCst);
        let mut visit = Visit {
            address,
            heard: 0,
            log: Vec::new(),
            resumed: None,
            is_confirmed: false,
            reached: HashMap::new(),
            left: HashSet::new(),
            latest: None,
            is_whole: false,
            is_truncated: false,
            claim: None,
            asked_at,
        };
        if self.habits.events {
            let last_id = self.last_id.filter(|_| resumes);
            visit.resumed = last_id.map(From::Place);
            let tap = Tap::events(address, &self.query(), last_id, self.habits.is_narrow).await?;
            return Some((tap, visit));
        }
        let since = self.last_time.clone().filter(|_| resumes);
        let mut tap = Tap::socket(address, self.habits.is_narrow).await?;
        let Habits { ids, max_rate, batch, .. } = &self.habits;
        let subscribe = json!({
            "type": "subscribe", "job_ids": ids, "since": since, "max_rate": max_rate, "batch": batch, "request_id": "all",
        });
        visit.resumed = since.map(|it| From::Time(DateTime::parse_from_rfc3339(&it).unwrap().to_utc()));
        tap.say(&subscribe).await;
        // Requests are served in order: whatever answers the first comes before the answer to this.
        let mark = json!({"type": "unsubscribe", "job_ids": [], "request_id": "mark"});
        tap.say(&mark).await;
        Some((tap, visit))
    }

    fn query(&self) -> String {
        let mut words = Vec::new();
        if let Some(ids) = &self.habits.ids {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            words.push(format!("job_ids={}", ids.join(",")));
        }
        words.extend(self.habits.max_rate.map(|rate| format!("max_rate={rate}")));
        if words.is_empty() { String::new() } else { format!("?{}", words.join("&")) }
    }

    /// Asks for some jobs once more, or watches one no longer.
    async fn fidget(&mut self, tap: &mut Tap, visit: &mut Visit) {
        let Some(ids) = &self.habits.ids else { return };
        let some: Vec<JobId> = ids.choose_multiple(&mut self.rng, 3).copied().collect();
        if self.habits.is_loyal || self.rng.random_bool(0.5) {
            if some.iter().all(|id| !visit.left.contains(id)) {
                tap.say(&json!({"type": "subscribe", "job_ids": some, "request_id": "again"})).await;
            }
        } else if visit.left.is_empty() {
            tap.say(&json!({"type": "unsubscribe", "job_ids": some[..1], "request_id": some[0]})).await;
        }
    }

    fn take(&mut self, heard: &Heard, visit: &mut Visit) {
        visit.heard += 1;
        let (message, data) = (&heard.message, &heard.message["data"]);
        match message["type"].as_str().unwrap() {
            "connected" | "going_away" => {}
            "subscription_confirmed" => self.confirmed(message, visit),
            "progress_batch" if self.habits.batch => {
                for message in data["messages"].as_array().unwrap() {
                    if message["type"] == "progress_update" {
                        self.told(message, visit);
                    } else {
                        self.fault(format!("in a batch: {message}"));
                    }
                }
            }
            kind if kind.starts_with("generation_") || kind == "progress_update" => self.told(message, visit),
            _ => self.fault(format!("not asked for: {message}")),
        }
        if visit.is_whole {
            self.last_time = self.last_time.take().max(visit.latest.clone());
        }
        if let Some(id) = heard.id {
            if let Some(claim) = visit.claim.take_if(|claim| id > claim.until) {
                self.report.recoveries.push(claim);
            }
            self.last_id = Some(id);
        }
    }

    fn confirmed(&mut self, message: &Value, visit: &mut Visit) {
        let data = &message["data"];
        match data["request_id"].as_str() {
            Some("mark") => {
                self.report.recoveries.extend(visit.claim.take());
                visit.is_whole = !visit.is_truncated;
            }
            // A snapshot of them follows, which goes back to where each stands.
            Some("again") => {
                for id in data["job_ids"].as_array().unwrap() {
                    visit.reached.remove(&id.as_str().unwrap().parse().unwrap());
                }
            }
            Some("all") | None => self.subscribed(message, visit),
            Some(id) => {
                visit.left.insert(id.parse().unwrap());
            }
        }
    }

    fn subscribed(&mut self, message: &Value, visit: &mut Visit) {
        let data = &message["data"];
        visit.is_confirmed = true;
        if data["batch"] != self.habits.batch || data["recovered"].is_null() != visit.resumed.is_none() {
            self.fault(format!("wrongly confirmed: {message}"));
        }
        visit.is_truncated = data["truncated"] == true;
        match (&visit.resumed, data["recovered"].as_bool()) {
            (Some(from), Some(true)) => {
                let claim = Recovery { from: from.clone(), until: visit.asked_at, told: HashSet::new() };
                visit.claim = Some(claim);
            }
            (Some(_), _) => self.report.lost_ground += 1,
            // Nobody told it of jobs that had ended by then, and it did not ask.
            (None, _) if self.habits.ids.is_none() => {
                self.report.owed_from = self.world.recorded.load(Ordering::SeqCst);
            }
            (None, _) => {}
        }
    }

    fn told(&mut self, message: &Value, visit: &mut Visit) {
        let data = &message["data"];
        let job: JobId = data["job_id"].as_str().unwrap().parse().unwrap();
        let number = |name: &str| u32::try_from(data[name].as_u64().unwrap()).unwrap();
        let seq = EventSeq { attempt: number("attempt"), seq: number("seq") };
        if !self.report.wanted.contains(&job) || visit.left.contains(&job) {
            self.fault(format!("of a job that is not watched: {message}"));
        }
        visit.log.push((visit.heard, job, seq));
        let before = visit.reached.insert(job, seq);
        if before.is_some_and(|before| before >= seq) {
            self.fault(format!(
                "{job}: {seq} came after {} ({visit}): {}",
                before.unwrap_or_default(),
                visit.told_of(job)
            ));
        }
        let time = message["timestamp"].as_str().unwrap();
        if visit.latest.as_deref().is_none_or(|latest| latest < time) {
            visit.latest = Some(time.to_owned());
        }
        if message["type"] == "progress_update" {
            return;
        }
        if seq.is_terminal() {
            self.report.ended.insert(job);
        }
        if let Some(claim) = &mut visit.claim {
            claim.told.insert((job, seq));
        }
        let known = self.report.told.insert((job, seq), message.clone());
        if known.is_some_and(|known| known != *message) {
            self.fault(format!("told otherwise before: {message}"));
        }
    }

    fn fault(&mut self, what: String) {
        self.report.faults.push(what);
    }

    fn some_time(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(300..4_000))
    }
}

impl Visit {
    /// Everything that was told of a job.
    fn told_of(&self, job: JobId) -> String {
        let told = self.log.iter().filter(|(_, of, _)| *of == job);
        told.map(|(number, _, seq)| format!("#{number} {seq}")).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Visit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, heard, resumed, is_confirmed, is_whole, left, latest, .. } = self;
        write!(
            f,
            "{heard} messages of {address}, resumed {resumed:?}, confirmed {is_confirmed}, whole {is_whole}, "
        )?;
        write!(f, "left {left:?}, latest {latest:?}")
    }
}

impl Report {
    /// The jobs whose end it is owed and has not been told.
    pub fn missing(&self, world: &World) -> Vec<JobId> {
        let ended = world.ended.lock().unwrap();
        let owed = ended.iter().filter(|(id, place)| self.wanted.contains(id) && **place > self.owed_from);
        owed.map(|(id, _)| *id).filter(|id| !self.ended.contains(id)).collect()
    }
}
