//! A cancel takes effect wherever in its life it finds a job, and whatever is away when it is asked for.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use stepcast_sdnext_sim::{Config, Fault, Running};
use stepcast_tests::client::Http;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;

/// A server that stays in each stage for so long that a cancel finds it there.
async fn slow() -> Sim {
    let config = Config {
        step_time: Duration::from_millis(400),
        load_time: Duration::from_secs(3),
        decode_time: Duration::from_secs(3),
        rate_limit: 0,
        ..Config::default()
    };
    Sim::with(config).await.unwrap()
}

async fn cancel(http: &Http, id: &str) {
    let answer = http.post(&format!("/generation/jobs/{id}/cancel"), &json!(null)).await;
    assert_eq!((answer.status.as_u16(), &answer.json["success"]), (200, &json!(true)), "{}", answer.json);
    let job = http.job(id).await;
    assert!(job["cancelling"] == true || job["status"] == "cancelled", "it is visible at once: {job}");
}

/// Whether a render is where its cancel is to find it.
type There = fn(&Running) -> bool;

/// What became of the renders of a prompt.
fn outcomes(sim: &Sim, prompt: &str) -> Vec<String> {
    let finished = sim.truth().finished.into_iter().filter(|render| render.prompt == prompt);
    finished.map(|render| render.outcome).collect()
}

#[tokio::test]
async fn a_render_is_cancelled_in_whatever_stage_it_is() {
    let sim = slow().await;
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let stages: [(&str, Value, There); 4] = [
        ("loading", json!({"model": "Diffusers/tiny-sd-b"}), |render| render.stage == "Load model"),
        ("sampling", json!({"steps": 30}), |render| render.step >= 2),
        ("decoding", json!({"steps": 1}), |render| render.stage == "VAE Decode"),
        ("between passes", json!({"steps": 2, "n_iter": 3}), |render| render.images == 1),
    ];
    for (prompt, more, there) in stages {
        let mut body = json!({"prompt": prompt, "steps": 6, "width": 512, "height": 512});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let id = http.submit(&body).await;
        until(prompt, async || sim.truth().running.filter(|render| render.prompt == prompt && there(render)))
            .await;
        cancel(&http, &id).await;
        let ended = http.ended(&id).await;
        assert_eq!((&ended["status"], &ended["images"]), (&json!("cancelled"), &json!([])), "{ended}");
        assert_eq!(ended["error"]["code"], "cancelled", "{ended}");
        assert_eq!(outcomes(&sim, prompt), ["interrupted"], "{prompt}");
        let whole = usize::from(prompt == "between passes");
        let kept = ended["outputs"].as_array().unwrap();
        assert_eq!(kept.len(), whole, "whole images are kept: {ended}");
        assert!(kept.iter().all(|output| output["partial"] == true), "{ended}");
    }
    let after = http.submit(&json!({"prompt": "after", "steps": 1, "width": 64, "height": 64})).await;
    assert_eq!(http.ended(&after).await["status"], "completed", "nothing of the interrupts is left");
}

#[tokio::test]
async fn a_job_is_cancelled_in_the_pause_before_it_is_tried_again() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    sim.handle.arm(Fault::Http500, 3);
    // The pause is doubled each time: the second is long enough for whatever else the machine does.
    let id = http.submit(&json!({"prompt": "pauses", "steps": 2, "max_attempts": 4})).await;
    let second =
        |message: &Value| message["type"] == "generation_retrying" && message["data"]["attempt"] == 2;
    watcher.wait("the second retry", second).await;
    cancel(&http, &id).await;
    let ended = http.ended(&id).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("cancelled"), &json!(2)), "{ended}");
    assert_eq!(watcher.ended(&id).await["data"]["status"], "cancelled");
    assert_eq!(sim.truth().renders_started, 2);
}

#[tokio::test]
async fn a_cancel_outlives_an_outage_of_nats_and_the_api_that_took_it() {
    let sim = Sim::start(Duration::from_millis(200)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let id = stack.http().submit(&json!({"prompt": "runs", "steps": 300})).await;
    until("it renders", async || sim.truth().running.filter(|render| render.step >= 1)).await;
    let many = json!({"job": {"prompt": "waits", "steps": 300}, "seeds": (0..60).collect::<Vec<_>>()});
    let batch = stack.http().post("/generation/batch", &many).await.json;
    let waiting = batch["jobs"].as_array().unwrap().iter().map(|job| job["job_id"].as_str().unwrap());
    stack.nats.process().signal(Signal::KILL);
    stack.nats.process().end().await;
    cancel(&stack.http(), &id).await;
    let begun = Instant::now();
    let path = format!("/generation/batch/{}/cancel", batch["batch_id"].as_str().unwrap());
    let answer = stack.http().post(&path, &json!(null)).await;
    assert_eq!(answer.status.as_u16(), 200, "{}", answer.json);
    // Sixty times the quarter of a second for which one is waited would be 15 s.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // With it goes whatever it would have sent once NATS is back.
    stack.api.signal(Signal::KILL);
    stack.api.end().await;
    assert_eq!(sim.truth().interrupts_received, 0, "nobody who could interrupt has heard of it");
    stack.nats.restart().await.unwrap();
    stack.restart_api().await.unwrap();
    for id in waiting.chain([id.as_str()]) {
        let ended = stack.http().ended(id).await;
        assert_eq!(ended["status"], "cancelled", "{ended}");
    }
    assert_eq!((outcomes(&sim, "runs"), sim.truth().renders_started), (vec!["interrupted".to_owned()], 1));
}

#[tokio::test]
async fn a_job_whose_poller_is_gone_is_cancelled_once_that_is_certain() {
    let sim = Sim::start(Duration::from_millis(500)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let id = http.submit(&json!({"prompt": "left alone", "steps": 8})).await;
    until("it renders", async || sim.truth().running.filter(|render| render.step >= 1)).await;
    stack.poller.signal(Signal::KILL);
    stack.poller.end().await;
    cancel(&http, &id).await;
    stack.restart_poller().unwrap();
    let ended = http.ended(&id).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("cancelled"), &json!(1)), "{ended}");
    assert_eq!(sim.truth().renders_started, 1, "it was not rendered again");
}
