//! Cancelling, by id and of nothing else.

use std::time::Duration;

use serde_json::json;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;

#[tokio::test]
async fn a_waiting_job_is_cancelled_at_once_and_a_running_one_as_soon_as_the_server_lets_go() {
    let sim = Sim::start(Duration::from_millis(400)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    let running = http.submit(&json!({"prompt": "runs", "steps": 100})).await;
    let waiting = http.submit(&json!({"prompt": "waits", "steps": 5})).await;
    until("the first one renders", async || sim.truth().running.filter(|running| running.step >= 1)).await;

    let answer = http.post(&format!("/generation/jobs/{waiting}/cancel"), &json!(null)).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json["status"]),
        (200, &json!("cancelled")),
        "{}",
        answer.json
    );
    assert_eq!(http.ended(&waiting).await["status"], "cancelled");
    assert_eq!(watcher.ended(&waiting).await["data"]["error"]["code"], "cancelled");

    let answer = http.post(&format!("/generation/jobs/{running}/cancel"), &json!(null)).await;
    assert_eq!((answer.status.as_u16(), &answer.json["success"]), (200, &json!(true)), "{}", answer.json);
    let ended = http.ended(&running).await;
    assert_eq!((&ended["status"], &ended["images"]), (&json!("cancelled"), &json!([])), "{ended}");
    assert_eq!(watcher.ended(&running).await["data"]["status"], "cancelled");
    let truth = sim.truth();
    assert_eq!(truth.finished.len(), 1, "the waiting one was never rendered");
    assert!(truth.interrupts_received >= 1);

    let again = http.post(&format!("/generation/jobs/{running}/cancel"), &json!(null)).await;
    assert_eq!(again.status, 409);
    let after = http
        .ended(&http.submit(&json!({"prompt": "after", "steps": 2, "width": 64, "height": 64})).await)
        .await;
    assert_eq!(after["status"], "completed", "nothing of the interrupt is left: {after}");
}
