//! NATS goes away and comes back; what was recorded meanwhile still arrives.

use std::time::Duration;

use serde_json::json;

use crate::link::Link;
use crate::nats_server::NatsServer;
use crate::stage::Stage;

#[tokio::test]
async fn an_end_recorded_around_a_restart_of_the_server_still_arrives() {
    let mut stage = Stage::new().await;
    let mut job = stage.job();
    stage.api.set(|lists| lists.active = vec![job.id]);
    job.queued().await;
    let mut by_id = stage.watch(&[&job]).await;
    let mut of_all = stage.watch_all().await;
    for client in [&mut by_id, &mut of_all] {
        client.expect_of("generation_queued", job.id).await;
    }
    job.started().await;
    for client in [&mut by_id, &mut of_all] {
        client.expect_of("generation_started", job.id).await;
    }
    stage.nats.kill();
    // Connections to clients outlast the broker.
    by_id.expect_nothing_more().await;
    stage.nats.restart();
    job.completed().await;
    for client in [&mut by_id, &mut of_all] {
        client.expect_of("generation_complete", job.id).await;
        client.expect_nothing_more().await;
    }
}

#[tokio::test]
async fn what_was_recorded_while_the_gateway_was_cut_off_arrives_once_it_is_back() {
    let nats = NatsServer::start().await;
    let mut link = Link::to(nats.port()).await;
    // No periodic reads: only the reconnect can bring it.
    let stage = Stage::over(nats, &link.url(), &["--gateway-reread", "10m"]).await;
    let (mut ending, mut arising) = (stage.job(), stage.job());
    ending.queued().await;
    ending.started().await;
    stage.api.set(|lists| lists.active = vec![ending.id]);
    let mut by_id = stage.watch(&[&ending]).await;
    let mut of_all = stage.watch_all().await;
    by_id.expect_of("generation_started", ending.id).await;
    of_all.expect_of("generation_started", ending.id).await;

    // The read that follows each subscribe after a second must be over, or it would bring the end as well.
    tokio::time::sleep(Duration::from_secs(3)).await;
    link.cut().await;
    ending.completed().await;
    arising.queued().await;
    stage.api.set(|lists| lists.active = vec![arising.id]);
    by_id.expect_nothing_more().await;
    link.mend().await;

    by_id.expect_of("generation_complete", ending.id).await;
    let both = [of_all.text().await, of_all.text().await];
    for id in [ending.id, arising.id] {
        assert_eq!(both.iter().filter(|text| text.contains(&id.to_string())).count(), 1, "{both:?}");
    }
}

#[tokio::test]
async fn a_client_that_comes_while_nats_is_away_is_told_later() {
    let nats = NatsServer::start().await;
    let mut link = Link::to(nats.port()).await;
    let stage = Stage::over(nats, &link.url(), &["--gateway-request-timeout", "500ms"]).await;
    let mut job = stage.job();
    job.queued().await;
    link.cut().await;
    let mut client = stage.connect().await;
    client.say(&json!({"type": "subscribe", "job_ids": [job.id]})).await;
    let confirmed = client.expect("subscription_confirmed").await;
    assert_eq!(confirmed["unknown"], json!([]), "nothing is known to be unknown");
    assert_eq!(confirmed["truncated"], true, "what could not be read is missing for now");
    client.say(&json!({"type": "submit", "job": {"prompt": "a cat"}, "request_id": "r"})).await;
    let refused = client.expect("error").await;
    assert_eq!((&refused["code"], &refused["request_id"]), (&json!("unavailable"), &json!("r")));
    link.mend().await;
    client.expect_of("generation_queued", job.id).await;
    job.started().await;
    client.expect_of("generation_started", job.id).await;
}

#[tokio::test]
async fn a_client_that_comes_back_while_nats_is_away_is_told_what_it_missed_once_that_is_back() {
    let nats = NatsServer::start().await;
    let mut link = Link::to(nats.port()).await;
    let stage = Stage::over(nats, &link.url(), &["--gateway-request-timeout", "500ms"]).await;
    let mut job = stage.job();
    job.queued().await;
    link.cut().await;
    let mut clients = [stage.connect().await, stage.connect().await];
    let [of_all, by_id] = &mut clients;
    let since = chrono::Utc::now().to_rfc3339();
    of_all.say(&json!({"type": "subscribe", "since": since})).await;
    by_id.say(&json!({"type": "subscribe", "job_ids": [job.id], "since": since})).await;
    // What could be told now would not be everything.
    for client in &mut clients {
        client.expect_nothing_more().await;
    }
    job.completed().await;
    link.mend().await;
    for client in &mut clients {
        assert_eq!(client.expect("subscription_confirmed").await["recovered"], true);
        client.expect_of("generation_queued", job.id).await;
        client.expect_of("generation_complete", job.id).await;
        client.expect_nothing_more().await;
    }
}
