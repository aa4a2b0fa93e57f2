//! What a client asks of api over its WebSocket.

use serde_json::json;

use crate::stage::Stage;

#[tokio::test]
async fn a_submitted_job_is_answered_and_followed() {
    let stage = Stage::new().await;
    let mut client = stage.connect().await;
    client.say(&json!({"type": "submit", "job": {"prompt": "a cat", "seed": -1}, "request_id": "r"})).await;
    let answer = client.expect("submitted").await;
    assert_eq!(answer["request_id"], "r");
    let accepted = &answer["jobs"][0];
    assert_eq!(accepted["job_id"], accepted["delivery_id"]);
    assert_eq!((&accepted["status"], &accepted["position"]), (&json!("pending"), &json!(1)));
    assert_eq!(accepted["urls"]["events"], "/ws/progress");
    assert_eq!(stage.api.submitted(), [json!({"prompt": "a cat", "seed": -1})]);

    let id = accepted["job_id"].as_str().unwrap().parse().unwrap();
    let mut job = stage.job().with_id(id);
    job.queued().await;
    client.expect_of("generation_queued", id).await;
    job.started().await;
    client.expect_of("generation_started", id).await;
    job.completed().await;
    client.expect_of("generation_complete", id).await;
    client.expect_nothing_more().await;
}

#[tokio::test]
async fn a_job_that_api_refuses_is_refused_field_by_field() {
    let stage = Stage::new().await;
    let mut client = stage.connect().await;
    client.say(&json!({"type": "submit", "jobs": [{"prompt": "a cat"}, {}], "request_id": "r"})).await;
    let error = client.expect("error").await;
    assert_eq!((&error["code"], &error["request_id"]), (&json!("invalid_job"), &json!("r")));
    assert_eq!(error["errors"], json!([{"pointer": "/prompt", "detail": "is missing"}]));
    client.expect_nothing_more().await;
}

#[tokio::test]
async fn cancels_are_answered_one_by_one() {
    let stage = Stage::new().await;
    let job = stage.job();
    let mut client = stage.connect().await;
    client.say(&json!({"type": "cancel", "job_ids": [job.id], "request_id": "r"})).await;
    let answer = client.expect("cancel_result").await;
    assert_eq!(answer["request_id"], "r");
    let outcome = json!({"job_id": job.id, "success": true, "status": "cancelled", "message": "cancelled"});
    assert_eq!(answer["jobs"], json!([outcome]));
}

#[tokio::test]
async fn requests_are_served_in_order_and_a_ping_meanwhile() {
    let stage = Stage::with(&["--gateway-request-timeout", "1s"]).await;
    stage.api.set(|lists| lists.silent = true);
    let job = stage.job();
    let mut client = stage.connect().await;
    client.say(&json!({"type": "submit", "job": {"prompt": "a cat"}, "request_id": "first"})).await;
    client.say(&json!({"type": "unsubscribe", "job_ids": [job.id], "request_id": "second"})).await;
    client.say(&json!({"type": "ping", "request_id": "third"})).await;
    assert_eq!(client.expect("pong").await["request_id"], "third");
    let refused = client.expect("error").await;
    assert_eq!((&refused["code"], &refused["request_id"]), (&json!("unavailable"), &json!("first")));
    assert_eq!(client.expect("subscription_confirmed").await["request_id"], "second");
}

#[tokio::test]
async fn a_silent_api_delays_a_snapshot_and_does_not_prevent_it() {
    let stage = Stage::with(&["--gateway-request-timeout", "300ms"]).await;
    stage.api.set(|lists| lists.silent = true);
    let (mut known, unknown) = (stage.job(), stage.job());
    known.queued().await;
    let mut client = stage.connect().await;
    client.say(&json!({"type": "subscribe", "job_ids": [known.id, unknown.id]})).await;
    assert_eq!(client.expect("subscription_confirmed").await["unknown"], json!([unknown.id]));
    client.expect_of("generation_queued", known.id).await;
    client.say(&json!({"type": "subscribe", "job_ids": null})).await;
    let confirmed = client.expect("subscription_confirmed").await;
    assert_eq!(confirmed["truncated"], true, "what api did not say may be missing");
}
