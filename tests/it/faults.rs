//! Much goes wrong while jobs run, and none of them is lost, told twice, or told differently to different readers.
//!
//! Each run prints its seed and its troubles where it fails; `STEPCAST_SEED` chooses them. What the machine does in
//! between differs from run to run. `STEPCAST_SOAK=1` adds the long runs, and draws a seed for each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use stepcast_sdnext_sim::Config;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::subjects::Kind;
use stepcast_tests::client::Http;
use stepcast_tests::faults::{self, Event};
use stepcast_tests::fleet::{Fleet, Shape};
use stepcast_tests::follower::{Follower, Interest};
use stepcast_tests::ledger::{self, Recorded};
use stepcast_tests::live::Listener;
use stepcast_tests::load::{self, Accepted};
use stepcast_tests::wait::until_none;
use stepcast_tests::{check, life};
use tokio::sync::watch;

/// How long after the last trouble every job must have ended: a claim's lease, several retries, and as much again.
const SETTLED: Duration = Duration::from_mins(2);
/// How long after that every client must know it: longer than the pause before a gateway reads again.
const TOLD: Duration = Duration::from_secs(45);

/// What is said of a claim whose poller vanished.
const LAPSED: &str = "The poller that ran this attempt has not been heard of for a full lease.";

/// One run.
#[derive(Clone, Copy)]
struct Run {
    shape: Shape,
    jobs: usize,
    /// Within how long they are sent.
    sending: Duration,
    faults: fn(Shape, &mut StdRng) -> Vec<Event>,
}

impl Run {
    const SHORT: Self =
        Self { shape: Shape::SMALL, jobs: 60, sending: Duration::from_secs(18), faults: faults::short };
    const LONG: Self =
        Self { jobs: 120, sending: Duration::from_secs(70), faults: faults::long, ..Self::SHORT };
}

#[tokio::test]
async fn sixty_jobs_outlive_one_trouble_of_each_kind() {
    survive(0, Run::SHORT).await;
}

#[tokio::test]
async fn soak_several_rounds_of_trouble() {
    soak(1, Run::LONG).await;
}

#[tokio::test]
async fn soak_several_other_rounds_of_trouble() {
    soak(2, Run::LONG).await;
}

#[tokio::test]
async fn soak_replicas_on_a_cluster_outlive_one_trouble_of_each_kind() {
    soak(3, Run { shape: Shape::LARGE, ..Run::SHORT }).await;
}

#[tokio::test]
async fn soak_replicas_on_a_cluster_outlive_several_rounds_of_trouble() {
    soak(4, Run { shape: Shape::LARGE, ..Run::LONG }).await;
}

/// Chooses the troubles of the short run.
const SHORT_SEED: u64 = 41;

async fn soak(number: u64, run: Run) {
    if variable("STEPCAST_SOAK").as_deref() == Some("1") {
        survive(number, run).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "a test has no command line of its own")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

async fn survive(number: u64, run: Run) {
    let seed = match variable("STEPCAST_SEED") {
        Some(seed) => seed.parse().expect("a number"),
        // New troubles are looked for by the long runs; a change is held against the same ones each time.
        None if variable("STEPCAST_SOAK").is_none() => SHORT_SEED,
        None => rand::random(),
    };
    eprintln!("STEPCAST_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed.wrapping_add(number));
    let events = (run.faults)(run.shape, &mut rng);
    for Event { begins, lasts, fault } in &events {
        eprintln!("{:6.2} s, for {:5.2} s: {fault:?}", begins.as_secs_f64(), lasts.as_secs_f64());
    }
    let orders = load::draw(&mut rng, run.jobs, run.sending);
    let simulated = Config {
        step_time: Duration::from_millis(rng.random_range(1200..2000)),
        rate_limit: 0,
        ..Config::default()
    };

    let Some(fleet) = Fleet::start_as(run.shape, &simulated).await.unwrap() else { return };
    let nats = NatsConfig::at(fleet.nats_url().await);
    let client = stepcast_shared::nats::connect("test", &nats).await.unwrap();
    let context = async_nats::jetstream::new(client.clone());
    let listener = Listener::start(&client).await.unwrap();
    let apis: Vec<Http> = fleet.http_addresses().iter().map(|address| Http::to(address)).collect();
    let http = &apis[0];
    let ids = watch::Sender::new(Vec::new());
    let mut followers = BTreeMap::new();
    for gateway in 0..run.shape.gateways {
        for interest in [Interest::All, Interest::Ids] {
            let follower = Follower::start(fleet.socket_address(gateway), interest, ids.subscribe());
            followers.insert(format!("{interest:?} at gateway {gateway}"), follower);
        }
    }

    let begun = Instant::now();
    let (accepted, ()) = tokio::join!(load::send_to(&apis, orders, &ids), faults::run(&fleet, events));
    eprintln!("all sent and all troubles over after {:.1} s", begun.elapsed().as_secs_f64());
    wait_for_the_ends(http, run.jobs).await;
    eprintln!("all jobs ended after {:.1} s", begun.elapsed().as_secs_f64());
    fleet.assert_running().await;
    until_none(TOLD, "every client knows every end", async || unaware(&followers, &accepted)).await;
    ledger::nothing_waits(&fleet.database_url(), &context).await;
    eprintln!("all told after {:.1} s", begun.elapsed().as_secs_f64());
    for (client, follower) in &followers {
        eprintln!("{client}: {} connections", follower.connections());
    }

    let stream = ledger::stream(&context).await.unwrap();
    assert_eq!(stream.len(), run.jobs, "the stream knows the accepted jobs and no others");
    let rows = ledger::rows(&fleet.database_url()).await.unwrap();
    assert_eq!(rows.len(), run.jobs, "a job sent again under the same key is the same job");
    let rows: BTreeMap<&str, _> = rows.iter().map(|row| (row.id.as_str(), row)).collect();
    let mut outcomes = BTreeMap::new();
    let renders = renders(&fleet).await;
    let interrupted = interrupted(&fleet).await;
    let told: BTreeMap<&String, _> =
        followers.iter().map(|(client, follower)| (client, follower.by_job())).collect();
    for job in &accepted {
        let recorded = &stream[&job.id];
        let most = u32::try_from(job.body["max_attempts"].as_u64().expect("a number")).expect("small");
        let end = life::events(&job.id, recorded, most);
        *outcomes.entry(format!("{} after {} attempts", end.kind, end.seq.attempt)).or_insert(0) += 1;
        life::row(rows[job.id.as_str()], end);
        for (client, told) in &told {
            life::told(client, &job.id, &told[&job.id], recorded);
        }
        check_renders(job, recorded, &renders);
        check_interrupt(job, recorded, &interrupted);
        check_outcome(http, job, end).await;
    }
    check_live(&listener, &stream);
    eprintln!("{outcomes:?}");
    let completed = stream.values().flatten().filter(|event| event.kind == Kind::Completed).count();
    assert!(completed * 2 > run.jobs, "most jobs come through: {outcomes:?}");
}

async fn wait_for_the_ends(http: &Http, jobs: usize) {
    until_none(SETTLED, "every job has ended", async || {
        let answer = http.get("/generation/jobs?limit=500").await.json;
        let all = answer["jobs"].as_array().expect("a list");
        assert_eq!(all.len(), jobs, "a job sent again under the same key is the same job");
        let ended = |status: &str| matches!(status, "completed" | "failed" | "cancelled");
        let open = all.iter().filter(|job| !job["status"].as_str().is_some_and(ended));
        open.cloned().collect()
    })
    .await;
}

/// Who has not been told of which end.
fn unaware(followers: &BTreeMap<String, Follower>, accepted: &[Accepted]) -> Vec<String> {
    let all = followers.iter().flat_map(|(client, follower)| {
        accepted
            .iter()
            .filter(|job| !follower.knows_end(&job.id))
            .map(move |job| format!("{} to {client}", job.id))
    });
    all.collect()
}

/// How often each prompt was rendered, over all lives of all servers.
async fn renders(fleet: &Fleet) -> BTreeMap<String, usize> {
    let mut renders = BTreeMap::new();
    for truth in fleet.truths().await {
        let running = truth.running.into_iter().map(|job| job.prompt);
        for prompt in truth.finished.into_iter().map(|job| job.prompt).chain(running) {
            *renders.entry(prompt).or_insert(0) += 1;
        }
    }
    renders
}

fn check_renders(job: &Accepted, recorded: &[Recorded], renders: &BTreeMap<String, usize>) {
    let started = recorded.iter().filter(|event| event.kind == Kind::Started).count();
    let prompt = job.body["prompt"].as_str().expect("a job has a prompt");
    let rendered = renders.get(prompt).copied().unwrap_or(0);
    assert!(rendered <= started, "{} was rendered {rendered} times in {started} attempts", job.id);
}

/// Prompts of the renders that were interrupted.
async fn interrupted(fleet: &Fleet) -> BTreeSet<String> {
    let finished = fleet.truths().await.into_iter().flat_map(|truth| truth.finished);
    finished.filter(|job| job.outcome == "interrupted").map(|job| job.prompt).collect()
}

/// Only what was cancelled is interrupted, or what a poller finds that it no longer holds.
fn check_interrupt(job: &Accepted, recorded: &[Recorded], interrupted: &BTreeSet<String>) {
    let lapsed = |event: &Recorded| event.message["data"]["error"]["message"] == LAPSED;
    let allowed = job.cancelled || recorded.iter().any(lapsed);
    let prompt = job.body["prompt"].as_str().expect("a job has a prompt");
    assert!(allowed || !interrupted.contains(prompt), "{} was interrupted, and nobody had asked", job.id);
}

async fn check_outcome(http: &Http, job: &Accepted, end: &Recorded) {
    let object = http.job(&job.id).await;
    assert_eq!(object["status"], end.message["data"]["status"], "{object}");
    match end.kind {
        Kind::Completed => {
            assert!(!job.told_cancelled, "somebody was told that it was cancelled: {object}");
            let images = object["images"].as_array().expect("a list");
            let expected = job.body["n_iter"].as_u64().zip(job.body["batch_size"].as_u64());
            assert_eq!(Some(images.len() as u64), expected.map(|(n, batch)| n * batch), "{object}");
            for url in images {
                let image = http.get(url.as_str().expect("an address")).await;
                let (width, height) = check::decoded_size(&image.bytes);
                assert_eq!(
                    (&width.into(), &height.into()),
                    (&job.body["width"], &job.body["height"]),
                    "{object}"
                );
            }
        }
        Kind::Cancelled => assert!(job.cancelled, "nobody cancelled it: {object}"),
        _ => {
            assert!(!job.told_cancelled, "somebody was told that it was cancelled: {object}");
            let spent = object["attempt"] == job.body["max_attempts"];
            assert!(spent || object["error"]["retryable"] == false, "it was given up early: {object}");
        }
    }
}

/// What was heard live is what was recorded, and in that order.
fn check_live(listener: &Listener, stream: &BTreeMap<String, Vec<Recorded>>) {
    let recorded: BTreeMap<u64, &Recorded> =
        stream.values().flatten().map(|event| (event.sequence, event)).collect();
    let mut last = 0;
    let mut events = 0;
    for heard in listener.heard() {
        let Some(sequence) = heard.sequence else {
            assert!(heard.subject.ends_with(".progress"), "{} is in no stream", heard.subject);
            continue;
        };
        assert!(last < sequence, "{sequence} was heard after {last}");
        last = sequence;
        let message: serde_json::Value = serde_json::from_slice(&heard.payload).expect("an envelope is JSON");
        assert_eq!(recorded.get(&sequence).map(|event| &event.message), Some(&message), "{}", heard.subject);
        events += 1;
    }
    assert!(events * 2 > recorded.len(), "most of {} events were heard: {events}", recorded.len());
}
