//! Cancelling, by id and of nothing else.

use std::ops::Range;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use stepcast_sdnext_sim::Truth;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;
use tokio::time::sleep;

/// Whether the time to stop that was told fits what the simulator saw. Times are microseconds on its clock.
fn agrees(told: &Value, asked: &Range<i64>, truth: &Truth) {
    let seconds = told["data"]["stopped_after_seconds"].as_f64().unwrap_or_else(|| panic!("{told}"));
    let ended = truth.finished.last().unwrap().ended_at;
    let between = |from: i64, to: i64| Duration::from_micros(u64::try_from(to - from).unwrap()).as_secs_f64();
    // Clocks are told to the millisecond, and answers take a moment.
    let slack = 0.25;
    assert!(
        seconds >= between(asked.end.min(ended), ended) - slack,
        "{seconds} s; {asked:?} to {ended}: {told}"
    );
    assert!(
        seconds <= between(asked.start, truth.now) + slack,
        "{seconds} s; {asked:?} to {}: {told}",
        truth.now
    );
}

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
    assert!(http.ended(&waiting).await["stopped_after_seconds"].is_null(), "nothing had to stop");
    let never_ran = watcher.ended(&waiting).await;
    assert_eq!(never_ran["data"]["error"]["code"], "cancelled");
    assert!(never_ran["data"].get("stopped_after_seconds").is_none(), "{never_ran}");

    let before = sim.truth().now;
    let answer = http.post(&format!("/generation/jobs/{running}/cancel"), &json!(null)).await;
    let asked = before..sim.truth().now;
    assert_eq!((answer.status.as_u16(), &answer.json["success"]), (200, &json!(true)), "{}", answer.json);
    let ended = http.ended(&running).await;
    assert_eq!((&ended["status"], &ended["images"]), (&json!("cancelled"), &json!([])), "{ended}");
    let told = watcher.ended(&running).await;
    assert_eq!(told["data"]["status"], "cancelled");
    assert_eq!(ended["stopped_after_seconds"], told["data"]["stopped_after_seconds"]);
    let truth = sim.truth();
    agrees(&told, &asked, &truth);
    assert_eq!(truth.finished.len(), 1, "the waiting one was never rendered");
    assert!(truth.interrupts_received >= 1);

    let again = http.post(&format!("/generation/jobs/{running}/cancel"), &json!(null)).await;
    assert_eq!(again.status, 409);
    let after = http
        .ended(&http.submit(&json!({"prompt": "after", "steps": 2, "width": 64, "height": 64})).await)
        .await;
    assert_eq!(after["status"], "completed", "nothing of the interrupt is left: {after}");
}

#[tokio::test]
async fn the_time_to_stop_counts_from_the_asking_and_not_from_when_it_was_heard() {
    let sim = Sim::start(Duration::from_millis(200)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    let id = http.submit(&json!({"prompt": "runs", "steps": 300})).await;
    until("it renders", async || sim.truth().running.filter(|running| running.step >= 1)).await;
    stack.poller.signal(Signal::STOP);
    let before = sim.truth().now;
    let answer = http.post(&format!("/generation/jobs/{id}/cancel"), &json!(null)).await;
    assert_eq!((answer.status.as_u16(), &answer.json["success"]), (200, &json!(true)), "{}", answer.json);
    let asked = before..sim.truth().now;
    assert_eq!(http.job(&id).await["cancelling"], true, "visible at once, whoever hears it");
    let deaf = Duration::from_secs(3);
    sleep(deaf).await;
    stack.poller.signal(Signal::CONT);
    let told = watcher.ended(&id).await;
    assert_eq!(told["data"]["status"], "cancelled");
    agrees(&told, &asked, &sim.truth());
    let seconds = told["data"]["stopped_after_seconds"].as_f64().unwrap();
    assert!(seconds >= deaf.as_secs_f64(), "{seconds} s, and it was deaf for {deaf:?}");
}
