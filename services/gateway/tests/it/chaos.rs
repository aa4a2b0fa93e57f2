//! Clients come, go, stall and change gateways while NATS and the gateways are restarted and cut off; none of them
//! loses an end, is told of a job out of order or of one that it did not ask for.
//!
//! A run prints its seed; `STEPCAST_SEED` chooses it. What the machine does in between differs from run to run.
//! `STEPCAST_SOAK=1` adds a long run, and draws a seed for each.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use stepcast_shared::ids::JobId;
use stepcast_shared::shutdown::Supervisor;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::jobs::Job;
use crate::ledger::{Ledger, Recorded};
use crate::link::Link;
use crate::nats_server::NatsServer;
use crate::stage::{FakeApi, Stage, serve_gateway};
use crate::watcher::{From, Habits, Recovery, Report, Resume, Watcher, World};

/// Chooses what happens in the short run: a change is held against the same troubles each time.
const SHORT_SEED: u64 = 7;

/// How much of what is wrong is printed: one fault may show a thousand times.
const SHOWN: usize = 30;

/// What every gateway is told: its clients are soon too slow, and it reads nothing again merely because time passes.
const ARGUMENTS: [&str; 14] = [
    "--gateway-reread",
    "10m",
    "--gateway-outbox-messages",
    "48",
    "--gateway-write-deadline",
    "1s",
    "--gateway-heartbeat",
    "1s",
    "--gateway-linger",
    "300ms",
    "--gateway-request-timeout",
    "1s",
    "--gateway-drain",
    "1s",
];

/// One run.
struct Run {
    jobs: usize,
    /// Within how long they begin.
    beginning: Duration,
    watchers: usize,
    /// Longest pause of a watcher between two visits.
    away: Duration,
    troubles: usize,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// NATS is killed, and is back after so many milliseconds.
    Nats(u64),
    /// The second gateway has no way to NATS for so many milliseconds.
    Link(u64),
    /// A gateway is stopped, and another one takes its place.
    Gateway(usize),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_stays_or_comes_back_is_told_every_end_in_order_and_nothing_else() {
    let (beginning, away) = (Duration::from_secs(7), Duration::from_millis(900));
    survive(Run { jobs: 50, beginning, watchers: 24, away, troubles: 4 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_clients_that_come_and_go() {
    if variable("STEPCAST_SOAK").as_deref() == Some("1") {
        let (beginning, away) = (Duration::from_secs(100), Duration::from_secs(3));
        survive(Run { jobs: 500, beginning, watchers: 50, away, troubles: 40 }).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has no command line of its own")]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

async fn survive(run: Run) {
    let seed = match variable("STEPCAST_SEED") {
        Some(seed) => seed.parse().expect("a number"),
        None if variable("STEPCAST_SOAK").is_none() => SHORT_SEED,
        None => rand::random(),
    };
    eprintln!("STEPCAST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut stage = Stage::with(&ARGUMENTS).await;
    let link = Link::to(stage.nats.port()).await;
    let (second, supervisor) = serve_gateway(&link.url(), &ARGUMENTS).await;
    let jobs: Vec<Job> = (0..run.jobs).map(|_| stage.job()).collect();
    let foreign: Vec<Job> = (0..run.jobs / 10).map(|_| stage.job().of("somebody")).collect();
    let ids: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
    let world = Arc::new(World {
        gateways: Mutex::new(vec![stage.address, second]),
        jobs: ids.iter().copied().collect(),
        recorded: 0.into(),
        ended: Mutex::default(),
        away: run.away,
        over: CancellationToken::new(),
    });

    let mut watching = JoinSet::new();
    for number in 0..run.watchers {
        let habits = habits(number, &ids, &mut rng);
        let name = name(number, &habits);
        watching.spawn(Watcher::new(name, rng.random(), habits, Arc::clone(&world)).run());
    }
    let Stage { nats, api, client, supervisor: first, .. } = &mut stage;
    let api = &*api;
    let lives = jobs.into_iter().chain(foreign).map(|job| {
        let begins = run.beginning.mul_f64(rng.random());
        live(job, begins, StdRng::seed_from_u64(rng.random()), api, &world)
    });
    let lives: Vec<_> = lives.collect();
    let mut house = House { nats, link, supervisors: [first.clone(), supervisor], world: &world };
    let troubles = (0..run.troubles).map(|_| trouble(&mut rng)).collect();
    tokio::join!(join_all(lives), house.suffer(troubles, run.beginning));
    world.over.cancel();

    let reports = watching.join_all().await;
    let ledger = Ledger::read(client).await;
    let ended = ledger.events().iter().filter(|event| event.seq.is_terminal()).count();
    assert_eq!(ended, run.jobs, "every job ends once");
    let wrong: Vec<String> = reports.iter().flat_map(|report| check(report, &ledger, &world)).collect();
    let sum = |count: fn(&Report) -> usize| reports.iter().map(count).sum::<usize>();
    eprintln!(
        "{} events, {} visits, {} recoveries, {} of ground lost, {} ids to resume with",
        ledger.events().len(),
        sum(|it| it.visits),
        sum(|it| it.recoveries.len()),
        sum(|it| it.lost_ground),
        sum(|it| it.resumes.len()),
    );
    let shown = &wrong[..wrong.len().min(SHOWN)];
    assert!(wrong.is_empty(), "{} things are wrong:\n{}", wrong.len(), shown.join("\n"));
    // A run in which nobody ever came back would have shown nothing.
    assert!(sum(|it| it.visits) > 3 * run.watchers && sum(|it| it.recoveries.len()) > run.watchers / 2);
    for supervisor in &house.supervisors {
        supervisor.stop();
    }
}

fn habits(number: usize, ids: &[JobId], rng: &mut StdRng) -> Habits {
    let events = number.is_multiple_of(3);
    let by_id = rng.random_bool(0.5);
    let some = rng.random_range(1..=ids.len().min(40));
    Habits {
        ids: by_id.then(|| ids.choose_multiple(rng, some).copied().collect()),
        batch: !by_id && !events && rng.random_bool(0.6),
        events,
        is_loyal: rng.random_bool(0.3),
        is_narrow: rng.random_bool(0.4),
        max_rate: rng.random_bool(0.2).then_some(5.0),
    }
}

fn name(number: usize, habits: &Habits) -> String {
    let Habits { ids, batch, events, is_loyal, is_narrow, max_rate } = habits;
    let mut name =
        format!("watcher {number} of {}", ids.as_ref().map_or("all".to_owned(), |it| it.len().to_string()));
    let marks = [
        (*batch, "batch"),
        (*events, "events"),
        (*is_loyal, "loyal"),
        (*is_narrow, "narrow"),
        (max_rate.is_some(), "rate"),
    ];
    for (_, mark) in marks.iter().filter(|(has, _)| *has) {
        name = format!("{name}, {mark}");
    }
    name
}

fn trouble(rng: &mut StdRng) -> Trouble {
    match rng.random_range(0..5) {
        0 | 1 => Trouble::Nats(rng.random_range(0..1_200)),
        2 | 3 => Trouble::Link(rng.random_range(50..1_500)),
        _ => Trouble::Gateway(rng.random_range(0..2)),
    }
}

/// A job's life, as api and its pollers tell it.
async fn live(mut job: Job, begins: Duration, mut rng: StdRng, api: &FakeApi, world: &World) {
    let is_ours = world.jobs.contains(&job.id);
    sleep(begins).await;
    let id = job.id;
    if is_ours {
        api.set(|lists| lists.active.push(id));
    }
    job.queued().await;
    world.recorded.fetch_max(job.place(), Ordering::SeqCst);
    let mut frozen = Vec::new();
    for _ in 0..rng.random_range(0..=3) {
        if !frozen.is_empty() {
            job.retrying().await;
        }
        job.started().await;
        world.recorded.fetch_max(job.place(), Ordering::SeqCst);
        frozen.push(job.frozen());
        for _ in 0..rng.random_range(0..25) {
            job.progress().await;
            // A poller that was given up wakes up and goes on for a while.
            if frozen.len() > 1 && rng.random_bool(0.2) {
                frozen[0].progress().await;
            }
            sleep(Duration::from_millis(rng.random_range(5..60))).await;
        }
    }
    job.completed().await;
    if is_ours {
        world.ended.lock().unwrap().insert(id, job.place());
        world.recorded.fetch_max(job.place(), Ordering::SeqCst);
        api.set(|lists| lists.active.retain(|it| *it != id));
    }
    for poller in &mut frozen {
        poller.progress().await;
    }
}

/// What can be broken.
struct House<'a> {
    nats: &'a mut NatsServer,
    link: Link,
    supervisors: [Supervisor; 2],
    world: &'a World,
}

impl House<'_> {
    async fn suffer(&mut self, troubles: Vec<Trouble>, lasting: Duration) {
        let pause = lasting / u32::try_from(troubles.len()).unwrap();
        for trouble in troubles {
            sleep(pause).await;
            eprintln!("{trouble:?}");
            match trouble {
                Trouble::Nats(millis) => {
                    self.nats.kill();
                    sleep(Duration::from_millis(millis)).await;
                    self.nats.restart();
                }
                Trouble::Link(millis) => {
                    self.link.cut().await;
                    sleep(Duration::from_millis(millis)).await;
                    self.link.mend().await;
                }
                Trouble::Gateway(index) => self.replace(index).await,
            }
        }
    }

    /// The old one sees its clients off while the new one takes them.
    async fn replace(&mut self, index: usize) {
        let url = if index == 0 { self.nats.url() } else { self.link.url() };
        let (address, supervisor) = serve_gateway(&url, &ARGUMENTS).await;
        self.world.gateways.lock().unwrap()[index] = address;
        let old = std::mem::replace(&mut self.supervisors[index], supervisor);
        old.finish().await.unwrap();
    }
}

/// What is wrong with what a watcher was told.
fn check(report: &Report, ledger: &Ledger, world: &World) -> Vec<String> {
    let mut wrong = report.faults.clone();
    for id in report.missing(world) {
        let end = ledger.events().iter().find(|event| event.job == id && event.seq.is_terminal());
        wrong.push(format!("{end:?} was not told; the last visit: {}", report.last_visit));
    }
    for ((job, seq), message) in &report.told {
        match ledger.get(*job, *seq) {
            Some(recorded) if recorded.message == *message => {}
            recorded => wrong.push(format!("{message} was told, but recorded is {recorded:?}")),
        }
    }
    for Recovery { from, until, told } in &report.recoveries {
        let is_asked_for = |event: &&Recorded| match from {
            From::Time(time) => event.stored_at >= *time,
            From::Place(place) => event.place > *place,
        };
        let asked_for = ledger.events().iter().filter(|event| event.place <= *until).filter(is_asked_for);
        for event in asked_for.filter(|event| report.wanted.contains(&event.job)) {
            if !told.contains(&(event.job, event.seq)) {
                wrong.push(format!("{from:?} was said to be recovered, and this was left out: {event:?}"));
            }
        }
    }
    for Resume { owed_from, place, ended } in &report.resumes {
        for event in ledger.ended(&report.wanted, *owed_from, *place) {
            if !ended.contains(&event.job) {
                wrong.push(format!("whoever comes back with id {place} never hears of {event:?}"));
            }
        }
    }
    let mut seen = HashSet::new();
    wrong.retain(|what| seen.insert(what.clone()));
    wrong.into_iter().map(|what| format!("{}: {what}", report.name)).collect()
}
