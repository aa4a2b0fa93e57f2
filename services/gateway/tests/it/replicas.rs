//! Replicas of the event stream that are behind, and a leader that is gone: no client is told that it has had what it
//! has not.

use std::time::Duration;

use async_nats::jetstream::stream;
use serde_json::json;
use stepcast_shared::subjects::EVENTS_STREAM;
use tokio::time::{sleep, timeout};

use crate::behind;
use crate::events::Events;
use crate::link::Link;
use crate::nats_server::NatsServer;
use crate::stage::{PATIENCE, Stage};

/// How often something is tried that a replica that is behind would have spoilt every other time.
const TRIES: usize = 12;

#[tokio::test]
async fn whoever_comes_back_is_told_what_a_replica_that_is_behind_does_not_know() {
    let stage = Stage::new().await;
    let (mut job, mut later) = (stage.job(), stage.job());
    job.queued().await;
    let id = job.place().to_string();
    behind::freeze(&stage.client).await;
    later.queued().await;
    job.started().await;
    job.completed().await;
    later.started().await;
    behind::is_asked(&stage.client, later.place()).await;
    let hour = (chrono::Utc::now() - chrono::TimeDelta::hours(1)).to_rfc3339();
    for _ in 0..TRIES {
        let mut events = Events::open(&stage, "", Some(&id)).await;
        assert_eq!(events.expect("subscription_confirmed").await.1["recovered"], true);
        events.expect_of("generation_queued", later.id).await;
        events.expect_of("generation_started", job.id).await;
        events.expect_of("generation_complete", job.id).await;
        events.expect_of("generation_started", later.id).await;

        let query = format!("?job_ids={}", job.id);
        let mut events = Events::open(&stage, &query, Some(&id)).await;
        assert_eq!(events.expect("subscription_confirmed").await.1["recovered"], true);
        events.expect_of("generation_started", job.id).await;
        events.expect_of("generation_complete", job.id).await;

        let mut client = stage.connect().await;
        client.say(&json!({"type": "subscribe", "job_ids": [later.id], "since": hour})).await;
        assert_eq!(client.expect("subscription_confirmed").await["recovered"], true);
        client.expect_of("generation_queued", later.id).await;
        client.expect_of("generation_started", later.id).await;
    }
}

#[tokio::test]
async fn no_place_is_told_beside_a_snapshot_that_lacks_what_came_before_it() {
    let stage = Stage::with(&["--gateway-reread", "10m"]).await;
    let mut job = stage.job();
    job.queued().await;
    stage.api.set(|lists| lists.active = vec![job.id]);
    behind::freeze(&stage.client).await;
    job.started().await;
    behind::is_asked(&stage.client, job.place()).await;
    for query in ["", &format!("?job_ids={}", job.id)] {
        for _ in 0..TRIES {
            let mut events = Events::open(&stage, query, None).await;
            events.expect("subscription_confirmed").await;
            events.expect_of("generation_started", job.id).await;
        }
    }
}

#[tokio::test]
async fn what_was_missed_is_read_from_a_replica_that_has_it() {
    for _ in 0..TRIES / 2 {
        let nats = NatsServer::start().await;
        let mut link = Link::to(nats.port()).await;
        let stage = Stage::over(nats, &link.url(), &["--gateway-reread", "10m"]).await;
        let (mut before, mut missed) = (stage.job(), stage.job());
        before.queued().await;
        let mut events = Events::open(&stage, "", Some("0")).await;
        events.expect("subscription_confirmed").await;
        events.expect_of("generation_queued", before.id).await;
        behind::freeze(&stage.client).await;
        link.cut().await;
        missed.queued().await;
        missed.started().await;
        missed.completed().await;
        behind::is_asked(&stage.client, missed.place()).await;
        link.mend().await;
        events.expect_of("generation_queued", missed.id).await;
        events.expect_of("generation_started", missed.id).await;
        events.expect_of("generation_complete", missed.id).await;
    }
}

#[tokio::test]
async fn what_a_leader_recorded_and_told_nobody_is_read_once_there_is_one_again() {
    let nats = NatsServer::start().await;
    let link = Link::to(nats.port()).await;
    let stage = Stage::over(nats, &link.url(), &["--gateway-reread", "10m"]).await;
    let mut events = Events::open(&stage, "", Some("0")).await;
    events.expect("subscription_confirmed").await;
    // From here the leader is gone as far as the gateway can tell, while it hears what is live.
    link.mute(true);
    tells_places(&stage, &mut events, false).await;
    let stream = stage.context.get_stream(EVENTS_STREAM).await.unwrap();
    let config = stream.cached_info().config.clone();
    let silent = stream::Config { republish: None, ..config.clone() };
    stage.context.update_stream(silent).await.unwrap();
    let mut untold = stage.job();
    untold.queued().await;
    untold.started().await;
    untold.completed().await;
    stage.context.update_stream(config).await.unwrap();
    link.mute(false);
    for kind in ["generation_queued", "generation_started", "generation_complete"] {
        assert!(events.expect_of(kind, untold.id).await.is_some());
    }
    tells_places(&stage, &mut events, true).await;
}

/// Waits until what is live comes with its place, or without.
async fn tells_places(stage: &Stage, events: &mut Events, does: bool) {
    let waiting = async {
        loop {
            let mut told = stage.job();
            told.queued().await;
            let id = events.expect_of("generation_queued", told.id).await;
            if id.is_some() == does {
                return;
            }
            assert!(id.is_none_or(|id| id == told.place().to_string()));
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("a timely change");
}
