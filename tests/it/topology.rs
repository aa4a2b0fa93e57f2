//! The whole deployment without containers: three NATS nodes with their users, PostgreSQL, two apis, three gateways,
//! two pollers, four simulated servers and nginx, all with the configuration that compose uses. Every process is
//! restarted under load, one after the other, and nothing is lost.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::json;
use stepcast_sdnext_sim::Config;
use stepcast_shared::subjects::Kind;
use stepcast_tests::client::Http;
use stepcast_tests::deployment::{Deployment, gateways};
use stepcast_tests::follower::{Follower, Interest};
use stepcast_tests::ledger::{self, Recorded};
use stepcast_tests::load::{self, Accepted};
use stepcast_tests::sse::Reader;
use stepcast_tests::wait::{until, until_none};
use stepcast_tests::watcher::{Told, Watcher};
use stepcast_tests::{check, life};
use tokio::sync::watch;
use tokio::time::interval;

/// Jobs that are sent within [`ROUND`], again and again until everything was restarted.
const JOBS: usize = 12;
const ROUND: Duration = Duration::from_secs(5);
/// Clients of each kind.
const CLIENTS: usize = 4;
/// How long after the last restart every job must have ended.
const SETTLED: Duration = Duration::from_mins(2);
/// How long after that every client must know it.
const TOLD: Duration = Duration::from_secs(45);

#[tokio::test]
async fn every_process_of_a_deployment_is_restarted_under_load_and_nothing_is_lost() {
    let simulated = Config { step_time: Duration::from_millis(1200), rate_limit: 0, ..Config::default() };
    let Some(mut deployment) = Deployment::start(&simulated).await.unwrap() else { return };
    let (http, door) = (deployment.http(), deployment.edge.address());
    over_one_origin(&http, &door).await;

    let ids = watch::Sender::new(Vec::new());
    let mut followers = BTreeMap::new();
    for client in 0..CLIENTS {
        for interest in [Interest::Since, Interest::Ids] {
            let follower = Follower::start(door.clone(), interest, ids.subscribe());
            followers.insert(
                format!("WebSocket, {} {client}", if interest == Interest::Ids { "by id" } else { "all" }),
                follower,
            );
        }
    }
    let reader = Reader::start(&http);

    let (begun, done) = (Instant::now(), Cell::new(false));
    let clock = (begun, Utc::now());
    let restarts = async {
        deployment.scale_out().await.unwrap();
        let restarted = deployment.restart_everything().await;
        done.set(true);
        restarted.unwrap();
        begun.elapsed()
    };
    let sending = async {
        let (mut rng, mut sent) = (StdRng::seed_from_u64(7), 0);
        let (mut rounds, mut accepted) = (FuturesUnordered::new(), Vec::new());
        let mut begins = interval(ROUND);
        while !done.get() {
            tokio::select! {
                _ = begins.tick() => {
                    let orders = load::draw_from(&mut rng, sent, JOBS, ROUND);
                    rounds.push(load::send(&http, orders, &ids));
                    sent += JOBS;
                }
                Some(more) = rounds.next() => accepted.extend(more),
            }
        }
        while let Some(more) = rounds.next().await {
            accepted.extend(more);
        }
        accepted
    };
    let (restarted, accepted) = tokio::join!(restarts, sending);
    wait_for_the_ends(&http, &accepted).await;
    deployment.assert_running();
    until_none(TOLD, "every client knows every end", async || unaware(&followers, &reader, &accepted)).await;

    let operator = deployment.bus.login("operator");
    let client = stepcast_shared::nats::connect("operator", &operator).await.unwrap();
    let context = async_nats::jetstream::new(client);
    let database = deployment.postgres.url();
    ledger::nothing_waits(&database, &context).await;
    let stream = ledger::stream(&context).await.unwrap();
    let rows: BTreeMap<String, _> =
        ledger::rows(&database).await.unwrap().into_iter().map(|row| (row.id.clone(), row)).collect();
    let renders = renders(&deployment);
    let told: BTreeMap<&String, _> = followers.iter().map(|(name, client)| (name, client.by_job())).collect();
    for job in &accepted {
        let recorded = &stream[&job.id];
        let end = life::events(&job.id, recorded, 1);
        life::row(&rows[&job.id], end);
        for (client, told) in &told {
            life::told(client, &job.id, &told[&job.id], recorded);
        }
        check_outcome(&http, job, end).await;
        let prompt = job.body["prompt"].as_str().expect("a job has a prompt");
        let rendered = renders.get(prompt).copied().unwrap_or(0);
        assert!(rendered <= 1, "{prompt} was rendered {rendered} times");
    }
    every_gateway_is_found(&deployment, &door).await;
    let violations = deployment.bus.violations();
    assert!(violations.is_empty(), "each service gets by with what it may: {violations:#?}");

    let events: usize = stream.values().map(Vec::len).sum();
    eprintln!(
        "jobs {}, events {events}, every process restarted in {:.0} s",
        accepted.len(),
        restarted.as_secs_f64()
    );
    eprintln!(
        "{:<20} {:>8} {:>10} {:>11} {:>13}",
        "client", "messages", "reconnects", "longest gap", "latest news"
    );
    for (name, client) in &followers {
        print(name, &client.told(), client.connections() - 1, clock);
    }
    print("server-sent events", &reader.told(), reader.connections() - 1, clock);
}

/// What one client saw since then: the longest time in which it heard nothing, be it that nothing happened, and how late
/// it heard of something that it had not heard of before.
fn print(name: &str, told: &[Told], reconnects: usize, (instant, time): (Instant, DateTime<Utc>)) {
    let mut known = BTreeMap::new();
    let (mut gap, mut latest, mut last) = (Duration::ZERO, TimeDelta::zero(), None);
    for Told { at, message } in told {
        let place = (message["data"]["attempt"].as_u64(), message["data"]["seq"].as_u64());
        let Some(id) = message["data"]["job_id"].as_str() else { continue };
        if known.get(id).is_some_and(|known| *known >= place) {
            continue;
        }
        known.insert(id, place);
        let happened: DateTime<Utc> = message["timestamp"].as_str().unwrap().parse().unwrap();
        if happened < time {
            continue;
        }
        gap = gap.max(last.replace(*at).map_or(Duration::ZERO, |last| *at - last));
        let heard = time + TimeDelta::from_std(*at - instant).unwrap();
        latest = latest.max(heard - happened);
    }
    let (gap, latest) = (gap.as_secs_f64(), latest.as_seconds_f64());
    eprintln!("{name:<20} {:>8} {reconnects:>10} {gap:>9.1} s {latest:>11.1} s", told.len());
}

/// The page, the API, a WebSocket that submits and cancels, and what is nobody's business: all through the one door.
async fn over_one_origin(http: &Http, door: &str) {
    for path in ["/", "/docs/", "/health", "/health/ready", "/generation/backends"] {
        assert_eq!(http.get(path).await.status, 200, "{path}");
    }
    assert_eq!(http.get("/metrics").await.status, 404, "one replica's metrics are not everybody's");
    let mut watcher = Watcher::connect(door).await.unwrap();
    for (n, prompt) in ["over a WebSocket", "cancelled over a WebSocket"].into_iter().enumerate() {
        let job = json!({"prompt": prompt, "steps": 4 + 296 * n, "width": 64, "height": 64});
        watcher.send(&json!({"type": "submit", "request_id": prompt, "job": job})).await;
        let answer = watcher.wait("submitted", |message| message["data"]["request_id"] == prompt).await;
        assert_eq!(answer["type"], "submitted", "{answer}");
        let id = answer["data"]["jobs"][0]["job_id"].as_str().unwrap().to_owned();
        if n == 1 {
            watcher.send(&json!({"type": "cancel", "job_ids": [id]})).await;
        }
        let end = watcher.ended(&id).await;
        assert_eq!(end["data"]["status"], ["completed", "cancelled"][n], "{end}");
    }
    let body = json!({"prompt": "and waits for it", "steps": 4, "width": 64, "height": 64});
    let waited = http.post("/generation/generate", &body).await;
    assert_eq!(waited.status, 200, "{}", waited.json);
}

async fn wait_for_the_ends(http: &Http, accepted: &[Accepted]) {
    until_none(SETTLED, "every job has ended", async || {
        let answer = http.get("/generation/jobs/active?limit=500").await.json;
        let active = answer["jobs"].as_array().expect("a list").clone();
        active.into_iter().map(|job| job["job_id"].clone()).collect()
    })
    .await;
    assert!(accepted.len() >= JOBS, "there was load");
}

/// Who has not been told of which end.
fn unaware(followers: &BTreeMap<String, Follower>, reader: &Reader, accepted: &[Accepted]) -> Vec<String> {
    let mut unaware = Vec::new();
    for job in accepted {
        for (name, _) in followers.iter().filter(|(_, client)| !client.knows_end(&job.id)) {
            unaware.push(format!("{} to {name}", job.id));
        }
        if !reader.knows_end(&job.id) {
            unaware.push(format!("{} by server-sent events", job.id));
        }
    }
    unaware
}

/// Clients that come are shared out, the gateway that was started later included.
async fn every_gateway_is_found(deployment: &Deployment, door: &str) {
    let mut clients = Vec::new();
    until("every gateway has clients", async || {
        clients.push(Watcher::connect(door).await.unwrap());
        for gateway in gateways() {
            let metrics = deployment.replica(gateway).get("/metrics").await;
            let metrics = String::from_utf8_lossy(&metrics.bytes).into_owned();
            let name = "stepcast_gateway_connections ";
            metrics.lines().find_map(|line| line.strip_prefix(name)).filter(|clients| *clients != "0")?;
        }
        Some(())
    })
    .await;
}

/// How often each prompt was rendered.
fn renders(deployment: &Deployment) -> BTreeMap<String, usize> {
    let mut renders = BTreeMap::new();
    for job in deployment.truths().into_iter().flat_map(|truth| truth.finished) {
        *renders.entry(job.prompt).or_insert(0) += 1;
    }
    renders
}

async fn check_outcome(http: &Http, job: &Accepted, end: &Recorded) {
    let object = http.job(&job.id).await;
    assert_eq!(object["status"], end.message["data"]["status"], "{object}");
    if end.kind != Kind::Completed {
        assert!(end.kind == Kind::Cancelled && job.cancelled, "nobody asked for that: {object}");
        return;
    }
    assert!(!job.told_cancelled, "somebody was told that it was cancelled: {object}");
    let images = object["images"].as_array().expect("a list");
    let expected = job.body["n_iter"].as_u64().zip(job.body["batch_size"].as_u64());
    assert_eq!(Some(images.len() as u64), expected.map(|(n, batch)| n * batch), "{object}");
    for url in images {
        let image = http.get(url.as_str().expect("an address")).await;
        let (width, height) = check::decoded_size(&image.bytes);
        assert_eq!((&width.into(), &height.into()), (&job.body["width"], &job.body["height"]), "{object}");
    }
}
