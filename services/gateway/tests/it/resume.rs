//! Clients that come back: what they missed is replayed, over WebSocket and as server-sent events.

use chrono::{SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use stepcast_shared::ids::JobId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::events::Events;
use crate::stage::{PATIENCE, Stage};

fn ago(seconds: i64) -> String {
    (Utc::now() - TimeDelta::seconds(seconds)).to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[tokio::test]
async fn whoever_comes_back_is_told_every_event_that_was_missed_and_then_what_is_live() {
    let stage = Stage::new().await;
    let (mut job, mut ended, mut other) = (stage.job(), stage.job(), stage.job());
    job.queued().await;
    other.queued().await;
    ended.queued().await;
    job.started().await;
    job.retrying().await;
    job.started().await;
    ended.started().await;
    ended.completed().await;
    let mut client = stage.connect().await;
    let ids = [job.id, ended.id];
    client.say(&json!({"type": "subscribe", "job_ids": ids, "since": ago(1)})).await;
    assert_eq!(client.expect("subscription_confirmed").await["recovered"], true);
    client.expect_of("generation_queued", job.id).await;
    client.expect_of("generation_queued", ended.id).await;
    client.expect_of("generation_started", job.id).await;
    client.expect_of("generation_retrying", job.id).await;
    client.expect_of("generation_started", job.id).await;
    client.expect_of("generation_started", ended.id).await;
    client.expect_of("generation_complete", ended.id).await;
    client.expect_nothing_more().await;
    let next = job.progress().await;
    assert_eq!(client.text().await, next);
    job.completed().await;
    client.expect_of("generation_complete", job.id).await;
    client.expect_nothing_more().await;
}

#[tokio::test]
async fn whoever_watches_all_and_comes_back_learns_of_jobs_that_ended_meanwhile() {
    let stage = Stage::new().await;
    let (mut running, mut ended) = (stage.job(), stage.job());
    ended.queued().await;
    ended.started().await;
    ended.completed().await;
    running.queued().await;
    running.started().await;
    stage.api.set(|lists| lists.active = vec![running.id]);
    // Somebody else watches, so this gateway knows how far the job is.
    let mut witness = stage.watch_all().await;
    witness.expect_of("generation_started", running.id).await;
    let last = running.progress().await;
    assert_eq!(witness.text().await, last);

    let mut client = stage.connect().await;
    client.say(&json!({"type": "subscribe", "since": ago(1)})).await;
    assert_eq!(client.expect("subscription_confirmed").await["recovered"], true);
    for (kind, id) in [
        ("generation_queued", ended.id),
        ("generation_started", ended.id),
        ("generation_complete", ended.id),
        ("generation_queued", running.id),
        ("generation_started", running.id),
    ] {
        client.expect_of(kind, id).await;
    }
    assert_eq!(client.text().await, last);
    client.expect_nothing_more().await;
    // What one client was told again is no news to another.
    witness.expect_nothing_more().await;
}

#[tokio::test]
async fn whoever_was_away_too_long_is_told_so_and_where_everything_stands() {
    let stage = Stage::new().await;
    let (mut running, mut ended) = (stage.job(), stage.job());
    ended.queued().await;
    ended.completed().await;
    running.queued().await;
    stage.api.set(|lists| lists.active = vec![running.id]);
    for subscribe in
        [json!({"type": "subscribe"}), json!({"type": "subscribe", "job_ids": [running.id, ended.id]})]
    {
        let mut client = stage.connect().await;
        let mut subscribe = subscribe;
        subscribe["since"] = json!("2020-01-01T00:00:00Z");
        client.say(&subscribe).await;
        assert_eq!(client.expect("subscription_confirmed").await["recovered"], false);
        client.expect_of("generation_queued", running.id).await;
        client.expect_of("generation_complete", ended.id).await;
        client.expect_nothing_more().await;
    }
}

#[tokio::test]
async fn server_sent_events_go_on_behind_the_last_that_was_read() {
    let stage = Stage::new().await;
    let (mut job, mut other) = (stage.job(), stage.job());
    job.queued().await;
    let query = format!("?job_ids={}", job.id);
    let mut events = Events::open(&stage, &query, None).await;
    events.expect("subscription_confirmed").await;
    let queued = events.expect_of("generation_queued", job.id).await;
    assert_eq!(queued, None, "a snapshot is no place to go on from");
    job.started().await;
    let started = events.expect_of("generation_started", job.id).await.expect("a recorded event has an id");
    job.progress().await;
    assert_eq!(events.expect_of("progress_update", job.id).await, None);
    drop(events);

    other.queued().await;
    job.retrying().await;
    job.started().await;
    let mut events = Events::open(&stage, &query, Some(&started)).await;
    assert_eq!(events.expect("subscription_confirmed").await.1["recovered"], true);
    events.expect_of("generation_retrying", job.id).await;
    events.expect_of("generation_started", job.id).await;
    job.completed().await;
    events.expect_of("generation_complete", job.id).await;
    stage.supervisor.stop();
    events.expect("going_away").await;
}

#[tokio::test]
async fn an_id_of_another_stream_recovers_nothing_and_says_so() {
    let stage = Stage::new().await;
    let mut job = stage.job();
    job.queued().await;
    let query = format!("?job_ids={}", job.id);
    let mut events = Events::open(&stage, &query, Some("4000000")).await;
    assert_eq!(events.expect("subscription_confirmed").await.1["recovered"], false);
    events.expect_of("generation_queued", job.id).await;
}

#[tokio::test]
async fn a_stream_that_makes_no_sense_is_refused_in_words() {
    let stage = Stage::with(&["--gateway-max-subscriptions", "2"]).await;
    let ids = [JobId::mint(), JobId::mint(), JobId::mint()].map(|id| id.to_string()).join(",");
    for (query, header, named) in [
        ("?job_ids=nonsense", "", "nonsense"),
        ("?job=1", "", "job"),
        ("?max_rate=0", "", "max_rate"),
        ("?topics=stats,weather", "", "weather"),
        (&format!("?job_ids={ids}"), "", "2 jobs"),
        ("", "Last-Event-ID: x\r\n", "Last-Event-ID"),
    ] {
        let mut stream = TcpStream::connect(stage.address).await.unwrap();
        let request = format!(
            "GET /sse/progress{query} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{header}\r\n",
            stage.address
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.contains(named), "{answer}");
    }
}

#[tokio::test]
async fn a_dashboard_gets_progress_in_batches_and_ends_at_once() {
    let stage = Stage::new().await;
    let mut jobs = [stage.job(), stage.job(), stage.job()];
    let mut client = stage.connect().await;
    client.say(&json!({"type": "subscribe", "batch": true})).await;
    assert_eq!(client.expect("subscription_confirmed").await["batch"], true);
    for job in &mut jobs {
        job.queued().await;
        client.expect("generation_queued").await;
        job.started().await;
        client.expect("generation_started").await;
    }
    let mut last = Vec::new();
    for job in &mut jobs {
        job.progress().await;
        last.push(serde_json::from_str::<Value>(&job.progress().await).unwrap());
    }
    // One batch may be sent between two of them; the latest of each job comes in the end.
    let mut latest: std::collections::HashMap<String, Value> = std::collections::HashMap::new();
    while last.iter().any(|message| !latest.values().any(|seen| seen == message)) {
        for message in client.expect("progress_batch").await["messages"].as_array().unwrap() {
            latest.insert(message["data"]["job_id"].as_str().unwrap().to_owned(), message.clone());
        }
    }
    jobs[0].progress().await;
    jobs[0].completed().await;
    let end = client.expect_of("generation_complete", jobs[0].id).await;
    assert_eq!(end["status"], "completed");
}
