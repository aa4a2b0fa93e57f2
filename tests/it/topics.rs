//! Statistics and backends as they change, from SD.Next to a client.

use std::time::Duration;

use serde_json::{Value, json};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;

#[tokio::test]
async fn a_dashboard_sees_a_backend_work_and_the_figures_follow() {
    let sim = Sim::start(Duration::from_millis(300)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.send(&json!({"type": "subscribe", "topics": ["stats", "backends"]})).await;
    let is = |kind: &'static str| move |message: &Value| message["type"] == kind;
    let confirmed = watcher.wait("the confirmation", is("subscription_confirmed")).await;
    assert_eq!(confirmed["data"]["topics"], json!(["stats", "backends"]));
    let state = |word: &'static str| {
        move |message: &Value| message["type"] == "backend_update" && message["data"]["state"] == word
    };
    watcher.wait("the backend is idle", state("idle")).await;
    watcher.wait("figures", is("stats")).await;

    let http = stack.http();
    let id = http.submit(&json!({"prompt": "watched", "steps": 8, "width": 256, "height": 256})).await;
    let busy = watcher.wait("the backend is busy", state("busy")).await;
    assert_eq!((&busy["data"]["id"], &busy["data"]["job_id"]), (&json!("gpu"), &json!(id)));
    http.ended(&id).await;
    let counted = |message: &Value| message["data"]["overall"]["jobs_completed"] == 1;
    let figures = watcher.wait("the job is counted", counted).await["data"].clone();
    assert_eq!(figures["backends"][0]["id"], "gpu", "{figures}");
    // What is told here and there is the same but for the moment.
    let asked = http.get("/generation/stats").await.json;
    assert_eq!(figures["overall"]["render_seconds"], asked["overall"]["render_seconds"]);
    assert_eq!(figures["window"], asked["window"]);
    assert!(
        watcher.about(&id).iter().all(|told| told.message["type"] == "backend_update"),
        "no job was asked for"
    );
}
