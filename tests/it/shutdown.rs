//! Stopping on request: what is in hand is finished or handed on, and nothing is lost.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use stepcast_tests::check;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;

#[tokio::test]
async fn a_poller_that_stops_in_a_render_hands_the_job_on() {
    let sim = Sim::start(Duration::from_millis(400)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    let id = http.submit(&json!({"prompt": "handed on", "steps": 30, "max_attempts": 1})).await;
    until("the render has begun", async || sim.truth().running.filter(|running| running.step >= 1)).await;

    stack.poller.signal(Signal::TERM);
    assert!(stack.poller.end().await.success());
    let job = http.job(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("pending"), &json!(1)), "{job}");
    assert!(sim.truth().running.is_none(), "the render was stopped, not left behind");

    sim.handle.configure(|config| config.step_time = Duration::from_millis(20));
    stack.restart_poller().unwrap();
    let ended = http.ended(&id).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("completed"), &json!(2)), "{ended}");
    watcher.ended(&id).await;
    check::messages(&id, &watcher.about(&id));
}

#[tokio::test]
async fn an_api_that_stops_and_comes_back_has_lost_nothing() {
    let sim = Sim::start(Duration::from_millis(100)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(stack.http().submit(&json!({"prompt": format!("job {n}"), "steps": 10})).await);
    }
    stack.api.signal(Signal::TERM);
    assert!(stack.api.end().await.success());
    stack.restart_api().await.unwrap();
    for id in &ids {
        assert_eq!(stack.http().ended(id).await["status"], "completed");
    }
    assert_eq!(sim.truth().renders_started, 5, "nothing was rendered twice");
}

#[tokio::test]
async fn an_api_killed_outright_has_lost_nothing() {
    let sim = Sim::start(Duration::from_millis(100)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(stack.http().submit(&json!({"prompt": format!("job {n}"), "steps": 10})).await);
    }
    stack.api.signal(Signal::KILL);
    stack.api.end().await;
    stack.restart_api().await.unwrap();
    for id in &ids {
        assert_eq!(stack.http().ended(id).await["status"], "completed");
    }
    assert_eq!(sim.truth().renders_started, 5, "nothing was rendered twice");
}
