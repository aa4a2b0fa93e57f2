//! What watchers of one job, of some and of all receive, early and late.

use std::time::Duration;

use serde_json::{Value, json};
use stepcast_shared::ids::JobId;

use crate::client::WsClient;
use crate::jobs::Job;
use crate::stage::Stage;

#[tokio::test]
async fn a_watcher_of_one_job_hears_its_whole_life_byte_for_byte() {
    let stage = Stage::new().await;
    let (mut job, mut other) = (stage.job(), stage.job());
    let mut client = stage.watch(&[&job]).await;
    for job in [&mut job, &mut other] {
        job.queued().await;
        job.started().await;
    }
    client.expect_of("generation_queued", job.id).await;
    let started = client.expect_of("generation_started", job.id).await;
    assert_eq!((&started["attempt"], &started["seq"]), (&json!(1), &json!(1)));
    for _ in 0..3 {
        other.progress().await;
        let payload = job.progress().await;
        assert_eq!(client.text().await, payload);
    }
    other.completed().await;
    job.completed().await;
    let end = client.expect_of("generation_complete", job.id).await;
    assert_eq!(end["status"], "completed");
    client.expect_nothing_more().await;
}

#[tokio::test]
async fn watchers_of_all_of_one_and_of_three_hear_of_their_jobs_alone() {
    let stage = Stage::new().await;
    let mut jobs: Vec<Job> = (0..4).map(|_| stage.job()).collect();
    let mut foreign = stage.job().of("somebody");
    let mut of_all = stage.watch_all().await;
    let mut of_one = stage.watch(&[&jobs[0]]).await;
    let mut of_three = stage.watch(&[&jobs[0], &jobs[1], &jobs[2]]).await;
    foreign.queued().await;
    for job in &mut jobs {
        job.queued().await;
        job.started().await;
        job.completed().await;
    }
    foreign.started().await;
    let heard = |expected: &[&Job]| -> Vec<(Value, Value)> {
        let kinds = ["generation_queued", "generation_started", "generation_complete"];
        let of_job = |job: &&Job| kinds.map(|kind| (json!(kind), json!(job.id)));
        expected.iter().flat_map(of_job).collect()
    };
    for (client, expected) in [
        (&mut of_all, jobs.iter().collect::<Vec<_>>()),
        (&mut of_one, vec![&jobs[0]]),
        (&mut of_three, jobs[..3].iter().collect()),
    ] {
        let expected = heard(&expected);
        let mut received = Vec::new();
        while received.len() < expected.len() {
            let message: Value = serde_json::from_str(&client.text().await).unwrap();
            received.push((message["type"].clone(), message["data"]["job_id"].clone()));
        }
        assert_eq!(received, expected);
        client.expect_nothing_more().await;
    }
}

#[tokio::test]
async fn a_latecomer_is_told_where_the_job_stands_and_then_goes_on_live() {
    let stage = Stage::new().await;
    let mut job = stage.job();
    let mut early = stage.watch(&[&job]).await;
    job.queued().await;
    job.started().await;
    job.progress().await;
    let last = job.progress().await;
    while early.text().await != last {}

    let mut late = stage.watch(&[&job]).await;
    late.expect_of("generation_started", job.id).await;
    assert_eq!(late.text().await, last);
    let next = job.progress().await;
    assert_eq!(late.text().await, next);
    job.completed().await;
    late.expect_of("generation_complete", job.id).await;

    let mut after_the_end = stage.watch(&[&job]).await;
    after_the_end.expect_of("generation_complete", job.id).await;
    after_the_end.expect_nothing_more().await;
}

#[tokio::test]
async fn live_messages_wait_for_a_snapshot_that_takes_its_time() {
    let stage = Stage::with(&["--gateway-request-timeout", "1s"]).await;
    let (mut job, unknown) = (stage.job(), stage.job());
    let mut already_there = stage.watch(&[&job]).await;
    job.queued().await;
    job.started().await;
    already_there.expect_of("generation_queued", job.id).await;
    already_there.expect_of("generation_started", job.id).await;
    // What the stream lacks is asked of api, which says nothing for a second.
    stage.api.set(|lists| lists.silent = true);
    let mut client = stage.connect().await;
    client.say(&json!({"type": "subscribe", "job_ids": [job.id, unknown.id]})).await;
    client.expect_nothing_more().await;
    let mut last = String::new();
    for _ in 0..3 {
        last = job.progress().await;
        already_there.text().await;
    }
    client.expect("subscription_confirmed").await;
    client.expect_of("generation_started", job.id).await;
    assert_eq!(client.text().await, last);
    client.expect_nothing_more().await;
}

#[tokio::test]
async fn whoever_watches_all_is_told_of_every_active_job() {
    let stage = Stage::new().await;
    let (mut waiting, mut running) = (stage.job(), stage.job());
    waiting.queued().await;
    running.queued().await;
    running.started().await;
    stage.api.set(|lists| {
        lists.active = vec![running.id, waiting.id];
        lists.truncated = true;
    });
    let mut client = stage.connect().await;
    client.say(&json!({"type": "subscribe", "job_ids": null, "request_id": "r"})).await;
    let confirmed = client.expect("subscription_confirmed").await;
    let expected = json!({
        "job_ids": null, "unknown": [], "previews": "none", "recovered": null, "batch": false, "truncated": true,
        "topics": [], "request_id": "r",
    });
    assert_eq!(confirmed, expected);
    client.expect_of("generation_started", running.id).await;
    client.expect_of("generation_queued", waiting.id).await;
    running.completed().await;
    client.expect_of("generation_complete", running.id).await;
}

#[tokio::test]
async fn more_jobs_than_one_read_takes_are_all_told_in_order() {
    let stage = Stage::new().await;
    let mut jobs: Vec<Job> = (0..450).map(|_| stage.job()).collect();
    for job in &mut jobs {
        job.queued().await;
    }
    let all: Vec<&Job> = jobs.iter().collect();
    let mut by_id = stage.watch(&all).await;
    stage.api.set(|lists| lists.active = jobs.iter().map(|job| job.id).collect());
    let mut of_all = stage.watch_all().await;
    for job in &jobs {
        by_id.expect_of("generation_queued", job.id).await;
        of_all.expect_of("generation_queued", job.id).await;
    }
    by_id.expect_nothing_more().await;
    of_all.expect_nothing_more().await;
}

#[tokio::test]
async fn an_unknown_job_is_said_to_be_and_followed_once_it_exists() {
    let stage = Stage::new().await;
    let (mut known, mut unknown, remembered) = (stage.job(), stage.job(), stage.job());
    known.queued().await;
    // The stream has lost this one, api has not.
    stage.api.set(|lists| {
        lists.last.insert(remembered.id, remembered.stored_end());
    });
    let mut client = stage.connect().await;
    let ids = [known.id, unknown.id, remembered.id];
    client
        .say(&json!({"type": "subscribe", "job_ids": ids, "since": "2026-01-01T00:00:00Z", "include_previews": true}))
        .await;
    let confirmed = client.expect("subscription_confirmed").await;
    assert_eq!(confirmed["job_ids"], json!(ids));
    assert_eq!(confirmed["unknown"], json!([unknown.id]));
    assert_eq!((&confirmed["previews"], &confirmed["recovered"]), (&json!("none"), &json!(false)));
    client.expect_of("generation_queued", known.id).await;
    client.expect_of("generation_complete", remembered.id).await;
    unknown.queued().await;
    client.expect_of("generation_queued", unknown.id).await;
}

#[tokio::test]
async fn an_end_is_told_once_however_often_it_is_read_and_again_to_who_asks_again() {
    let stage = Stage::with(&["--gateway-reread", "100ms", "--gateway-linger", "50ms"]).await;
    let mut job = stage.job();
    stage.api.set(|lists| lists.active = vec![job.id]);
    job.queued().await;
    // Watched twice over, by two connections.
    let mut client = stage.watch_all().await;
    client.expect_of("generation_queued", job.id).await;
    client.say(&json!({"type": "subscribe", "job_ids": [job.id]})).await;
    client.expect("subscription_confirmed").await;
    client.expect_of("generation_queued", job.id).await;
    let mut second = stage.watch(&[&job]).await;
    second.expect_of("generation_queued", job.id).await;
    job.started().await;
    job.retrying().await;
    job.started().await;
    job.completed().await;
    for client in [&mut client, &mut second] {
        for kind in ["generation_started", "generation_retrying", "generation_started", "generation_complete"]
        {
            client.expect_of(kind, job.id).await;
        }
    }
    // Long enough for many more reads of whatever is still watched.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    client.expect_nothing_more().await;
    second.expect_nothing_more().await;
    second.say(&json!({"type": "subscribe", "job_ids": [job.id]})).await;
    second.expect("subscription_confirmed").await;
    second.expect_of("generation_complete", job.id).await;
}

#[tokio::test]
async fn whoever_unsubscribes_hears_no_more() {
    let stage = Stage::new().await;
    let (mut job, mut kept) = (stage.job(), stage.job());
    let mut client = stage.watch(&[&job, &kept]).await;
    client.say(&json!({"type": "unsubscribe", "job_ids": [job.id]})).await;
    assert_eq!(client.expect("subscription_confirmed").await["job_ids"], json!([kept.id]));
    job.queued().await;
    kept.queued().await;
    client.expect_of("generation_queued", kept.id).await;
    client.say(&json!({"type": "unsubscribe", "job_ids": null})).await;
    assert_eq!(client.expect("subscription_confirmed").await["job_ids"], json!([]));
    kept.started().await;
    client.expect_nothing_more().await;
}

#[tokio::test]
async fn single_watchers_miss_nothing_while_watchers_of_all_come_and_go() {
    let stage = Stage::with(&["--gateway-linger", "100ms", "--gateway-reread", "10m"]).await;
    let mut job = stage.job();
    let mut single = stage.watch(&[&job]).await;
    job.queued().await;
    job.started().await;
    single.expect_of("generation_queued", job.id).await;
    single.expect_of("generation_started", job.id).await;
    let mut visitor: Option<WsClient> = None;
    // The sweep passes twice a second; each visit and each absence lasts through several of them.
    for round in 0..100 {
        if round % 50 == 0 {
            visitor = Some(stage.watch_all().await);
        } else if round % 50 == 25 {
            visitor = None;
        }
        let payload = job.progress().await;
        assert_eq!(single.text().await, payload, "round {round}");
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    drop(visitor);
    job.completed().await;
    single.expect_of("generation_complete", job.id).await;
}

#[tokio::test]
async fn a_slow_reader_skips_progress_and_misses_no_event() {
    let stage = Stage::new().await;
    let mut job = stage.job();
    let mut slow = WsClient::connect_narrow(stage.address).await;
    slow.expect("connected").await;
    slow.say(&json!({"type": "subscribe", "job_ids": [job.id]})).await;
    slow.expect("subscription_confirmed").await;
    let mut fast = stage.watch(&[&job]).await;
    job.queued().await;
    job.started().await;
    let published = 5_000;
    for _ in 0..published {
        job.progress().await;
    }
    job.completed().await;
    fast.until_complete(job.id).await;

    let received = slow.until_complete(job.id).await;
    let of = |kind: &str| received.iter().filter(|it| it["type"] == kind).count();
    assert_eq!((of("generation_queued"), of("generation_started")), (1, 1));
    assert!(of("progress_update") < published / 2, "{} were sent", of("progress_update"));
    let seqs: Vec<(u64, u64)> = received
        .iter()
        .map(|it| (it["data"]["attempt"].as_u64().unwrap(), it["data"]["seq"].as_u64().unwrap()))
        .collect();
    assert!(seqs.is_sorted_by(|before, after| before < after));
}

#[tokio::test]
async fn updates_come_no_faster_than_asked_for() {
    let stage = Stage::new().await;
    let mut job = stage.job();
    let mut client = stage.connect().await;
    client.say(&json!({"type": "subscribe", "job_ids": [job.id], "max_rate": 2})).await;
    client.expect("subscription_confirmed").await;
    job.queued().await;
    job.started().await;
    let begun = std::time::Instant::now();
    for _ in 0..50 {
        job.progress().await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    job.completed().await;
    let received = client.until_complete(job.id).await;
    let updates = received.iter().filter(|it| it["type"] == "progress_update").count() as f64;
    let most = begun.elapsed().as_secs_f64() * 2.0 + 1.0;
    assert!((1.0..=most).contains(&updates), "{updates} updates, at most {most} were asked for");
}

#[tokio::test]
async fn an_id_is_one_job_in_either_case() {
    let stage = Stage::new().await;
    let mut job = stage.job();
    let mut client = stage.connect().await;
    client.say(&json!({"type": "subscribe", "job_ids": [job.id.to_string().to_uppercase()]})).await;
    assert_eq!(client.expect("subscription_confirmed").await["job_ids"], json!([job.id]));
    job.queued().await;
    client.expect_of("generation_queued", job.id).await;
    assert_eq!(job.id.to_string().parse::<JobId>(), Ok(job.id));
}
