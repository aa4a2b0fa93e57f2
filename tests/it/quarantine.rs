//! A server that fails whatever it is given does not use up the queue.

use std::time::Duration;

use serde_json::json;
use stepcast_sdnext_sim::Fault;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;

#[tokio::test]
async fn a_wedged_server_is_taken_out_of_service_mended_and_used_again() {
    let sim = Sim::start(Duration::from_millis(50)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let small = json!({"prompt": "small", "steps": 2, "width": 64, "height": 64, "max_attempts": 1});
    sim.handle.arm(Fault::Wedged, 1);
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(http.submit(&small).await);
    }
    until("the server is out of service", async || {
        let backend = http.get("/generation/backends").await.json["backends"][0].clone();
        (backend["state"] == "quarantined" && backend["message"].is_string()).then_some(())
    })
    .await;
    let rendered = sim.truth().renders_finished;
    assert!(rendered <= 3, "no more of the queue is used up: {rendered}");
    assert_eq!(http.job(&ids[5]).await["waiting_for"], "backend_down");
    let mut outcomes = Vec::new();
    for id in &ids {
        outcomes.push(http.ended(id).await["status"].as_str().unwrap().to_owned());
    }
    assert_eq!(outcomes, ["failed", "failed", "failed", "completed", "completed", "completed"]);
    assert!(!sim.truth().wedged, "the checkpoint was reloaded");
}
