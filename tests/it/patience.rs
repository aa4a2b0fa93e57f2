//! What a long outage, or a job that is bad for its poller, may cost: no attempt, and no more than its own.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use stepcast_sdnext_sim::Config;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;
use tokio::time::sleep;

use crate::recovery::up;

/// Longer than the lease of a claim (45 s) and that of a backend (30 s).
const OUTAGE: Duration = Duration::from_secs(50);

fn with_one_attempt(prompt: &str) -> Value {
    json!({"prompt": prompt, "steps": 2, "width": 64, "height": 64, "max_attempts": 1})
}

#[tokio::test]
async fn an_outage_of_nats_longer_than_every_lease_costs_no_attempt_and_no_render() {
    let sim = Sim::start(Duration::from_millis(500)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    // Its render ends within the outage.
    let running = http.submit(&json!({"prompt": "runs", "steps": 80, "max_attempts": 1})).await;
    let waiting = http.submit(&with_one_attempt("waits")).await;
    until("it renders", async || sim.truth().running.filter(|render| render.step >= 1)).await;
    stack.nats.process().signal(Signal::KILL);
    stack.nats.process().end().await;
    let meanwhile = http.submit(&with_one_attempt("was accepted meanwhile")).await;
    sleep(OUTAGE).await;
    assert_eq!(sim.truth().finished.len(), 1, "the render was let alone, and no other begun");
    stack.nats.restart().await.unwrap();
    for id in [running, waiting, meanwhile] {
        let job = http.ended(&id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    }
    let truth = sim.truth();
    assert_eq!((truth.renders_started, truth.interrupts_received), (3, 0), "each was rendered once");
}

/// A backend that is away for so long, and then back without a memory of what it was doing.
async fn a_backend_reboots(away: Duration) {
    let config = Config { step_time: Duration::from_millis(200), rate_limit: 0, ..Config::default() };
    let before = Sim::with(config.clone()).await.unwrap();
    let stack = Stack::start(&[("gpu", before.url())]).await.unwrap();
    let http = stack.http();
    let lost = http.submit(&json!({"prompt": "is lost", "steps": 20, "max_attempts": 2})).await;
    let waiting = http.submit(&with_one_attempt("waits")).await;
    until("it renders", async || before.truth().running.filter(|render| render.step >= 1)).await;
    before.handle.kill();
    let meanwhile = http.submit(&with_one_attempt("was accepted meanwhile")).await;
    sleep(away).await;
    for (id, attempt) in [(&lost, 1), (&waiting, 0), (&meanwhile, 0)] {
        let job = http.job(id).await;
        assert_eq!(
            (&job["status"], &job["waiting_for"]),
            (&json!("pending"), &json!("backend_down")),
            "{job}"
        );
        assert_eq!(job["attempt"], attempt, "being away uses up none: {job}");
    }
    let after =
        until("the address is free again", async || Sim::at(&before.address(), config.clone()).await.ok())
            .await;
    for (id, attempt) in [(&lost, 2), (&waiting, 1), (&meanwhile, 1)] {
        let job = http.ended(id).await;
        assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(attempt)), "{job}");
    }
    let truth = after.truth();
    assert_eq!((truth.renders_started, truth.interrupts_received), (3, 0), "each was rendered once");
}

#[tokio::test]
async fn a_backend_that_reboots_for_longer_than_every_lease_costs_no_more_than_the_render_it_lost() {
    a_backend_reboots(OUTAGE).await;
}

#[tokio::test]
async fn soak_a_backend_that_reboots_for_minutes() {
    if std::env::var_os("STEPCAST_SOAK").is_some_and(|value| value == "1") {
        a_backend_reboots(Duration::from_mins(3)).await;
    }
}

#[tokio::test]
async fn the_backends_of_a_poller_that_died_are_taken_over_by_another_with_the_same_list() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let holder = async || http.get("/generation/backends").await.json["backends"][0]["poller"].clone();
    assert_eq!(http.ended(&http.submit(&with_one_attempt("before")).await).await["status"], "completed");
    let first = holder().await;
    let _another = stack.another_poller().unwrap();
    stack.poller.signal(Signal::KILL);
    stack.poller.end().await;
    let job = http.ended(&http.submit(&with_one_attempt("after")).await).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(1)), "{job}");
    let second = holder().await;
    assert!(first.is_string() && second.is_string() && first != second, "{first} held it, then {second}");
    assert_eq!(sim.truth().renders_started, 2);
}

#[tokio::test]
async fn a_job_that_keeps_killing_its_poller_ends_failed_with_its_attempts() {
    let sim = Sim::start(Duration::from_millis(400)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (mut process, mut http) = up(&folder, &sim, false).await;
    let id = http.submit(&json!({"prompt": "bad", "steps": 30, "max_attempts": 3})).await;
    for attempt in 1..=3_u64 {
        until("the attempt renders", async || {
            let truth = sim.truth();
            (truth.renders_started == attempt && truth.running.is_some_and(|render| render.step >= 1))
                .then_some(())
        })
        .await;
        process.signal(Signal::KILL);
        process.end().await;
        (process, http) = up(&folder, &sim, false).await;
    }
    let job = http.ended(&id).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("failed"), &json!(3)), "{job}");
    assert_eq!(job["error"]["code"], "backend_unavailable", "{job}");
    let attempts = job["error"]["attempts"].as_array().unwrap();
    let numbers: Vec<_> = attempts.iter().map(|attempt| attempt["attempt"].as_u64().unwrap()).collect();
    assert_eq!(numbers, [1, 2, 3], "the history of its attempts: {job}");
    assert!(attempts.iter().all(|attempt| attempt["backend"] == "gpu"), "{job}");
    assert_eq!(sim.truth().renders_started, 3);
}
