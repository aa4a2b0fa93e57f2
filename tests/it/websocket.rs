//! The WebSocket contract, over the real gateway.

use std::time::Duration;

use serde_json::json;
use stepcast_tests::check;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn a_job_is_submitted_watched_and_cancelled_over_the_socket_alone() {
    let sim = Sim::start(Duration::from_millis(300)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let mut watcher = stack.watcher().await.unwrap();
    watcher
        .send(&json!({"type": "submit", "request_id": "r1", "job": {"prompt": "socket", "steps": 100}}))
        .await;
    let submitted = watcher.wait("submitted", |message| message["type"] == "submitted").await;
    assert_eq!(submitted["data"]["request_id"], "r1");
    let id = submitted["data"]["jobs"][0]["job_id"].as_str().unwrap().to_owned();
    watcher.wait("progress", |message| message["type"] == "progress_update").await;
    watcher.send(&json!({"type": "cancel", "job_ids": [id]})).await;
    assert_eq!(watcher.ended(&id).await["data"]["status"], "cancelled");
    check::messages(&id, &watcher.about(&id));

    let unknown = "01a20613-13a1-7151-9bbe-50f27a70ee82";
    watcher.send(&json!({"type": "retry", "job_ids": [id, unknown]})).await;
    let retried = watcher.wait("retry_result", |message| message["type"] == "retry_result").await;
    let [first, second] = &retried["data"]["jobs"].as_array().unwrap()[..] else { panic!("{retried}") };
    assert_eq!((&first["job_id"], &first["success"]), (&json!(id), &json!(true)), "{retried}");
    assert_eq!((&second["job_id"], &second["success"]), (&json!(unknown), &json!(false)), "{retried}");
    let again = first["job"]["job_id"].as_str().unwrap().to_owned();
    watcher
        .wait("progress of the new job", |message| {
            message["type"] == "progress_update" && message["data"]["job_id"] == again
        })
        .await;
    watcher.send(&json!({"type": "cancel", "job_ids": [again]})).await;
    assert_eq!(watcher.ended(&again).await["data"]["status"], "cancelled");
    check::messages(&again, &watcher.about(&again));

    watcher.send(&json!({"type": "submit", "job": {"prompt": "", "steps": 0}})).await;
    let error = watcher.wait("an error", |message| message["type"] == "error").await;
    assert!(error["data"]["message"].as_str().is_some_and(|text| text.contains("prompt")), "{error}");
}

#[tokio::test]
async fn junk_gets_an_error_and_the_connection_stays() {
    let sim = Sim::start(Duration::from_millis(50)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let mut watcher = stack.watcher().await.unwrap();
    for (frame, code) in [
        (Message::text("{"), "invalid_json"),
        (Message::text("[]"), "invalid_message"),
        (Message::text(r#"{"type":"dance"}"#), "unknown_type"),
        (Message::text(r#"{"type":"subscribe","job_ids":["nope"]}"#), "invalid_message"),
        (Message::binary(vec![0xff; 64]), "invalid_message"),
    ] {
        let before = watcher.told().len();
        watcher.send_raw(frame.clone()).await;
        let told = until("an answer", async || watcher.told().get(before).cloned()).await;
        assert_eq!(told.message["type"], "error", "{frame:?}: {}", told.message);
        assert_eq!(told.message["data"]["code"], code, "{frame:?}");
    }
    watcher.send(&json!({"type": "ping", "request_id": "still here"})).await;
    let pong = watcher.wait("pong", |message| message["type"] == "pong").await;
    assert_eq!(pong["data"]["request_id"], "still here");

    watcher.send_raw(Message::text("x".repeat(100_000))).await;
    assert_eq!(watcher.closed().await, 1009);
    let mut next = stack.watcher().await.unwrap();
    next.subscribe(None).await;
    // So much that it is cut off while it is still being sent.
    next.try_send(Message::text("x".repeat(10_000_000))).await;
    assert!(matches!(next.closed().await, 1006 | 1009));
    stack.watcher().await.unwrap().subscribe(None).await;
}

#[tokio::test]
async fn a_watcher_outlives_a_restart_of_nats() {
    let sim = Sim::start(Duration::from_millis(250)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    let id = stack.http().submit(&json!({"prompt": "through an outage", "steps": 20})).await;
    watcher.wait("progress", |message| message["type"] == "progress_update").await;
    stack.nats.process().signal(rustix::process::Signal::KILL);
    stack.nats.process().end().await;
    stack.nats.restart().await.unwrap();
    assert_eq!(watcher.ended(&id).await["data"]["status"], "completed");
    assert_eq!(stack.http().ended(&id).await["status"], "completed");
    check::messages(&id, &watcher.about(&id));
    assert_eq!(sim.truth().renders_started, 1, "and nothing was rendered twice");
}

#[tokio::test]
async fn a_gateway_that_stops_says_so() {
    let sim = Sim::start(Duration::from_millis(50)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    stack.gateway.signal(rustix::process::Signal::TERM);
    let bye = watcher.wait("going_away", |message| message["type"] == "going_away").await;
    assert!(bye["data"]["reconnect_after_ms"].is_u64(), "{bye}");
    assert_eq!(watcher.closed().await, 1001);
    assert!(stack.gateway.end().await.success());
}
