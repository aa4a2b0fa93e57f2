//! Servers that speak another dialect: found out by probing, followed exactly, and never mixed up with another's work.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use stepcast_sdnext_sim::{Config, Dialect, Fault};
use stepcast_tests::check;
use stepcast_tests::client::Http;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;
use stepcast_tests::watcher::Watcher;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::recovery::up;

const DIALECTS: [(&str, Dialect); 3] =
    [("sdnext", Dialect::Sdnext), ("a1111", Dialect::A1111), ("forge", Dialect::Forge)];

async fn start(dialect: Dialect, step: Duration) -> Sim {
    Sim::with(Config { dialect, step_time: step, rate_limit: 0, ..Config::default() }).await.unwrap()
}

fn picture() -> String {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 256, 192);
    encoder.set_color(png::ColorType::Rgb);
    let pixels: Vec<u8> = (0..256 * 192 * 3).map(|n| u8::try_from(n % 241).expect("below 241")).collect();
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels)).expect("a PNG in memory");
    STANDARD.encode(bytes)
}

fn job(more: &Value) -> Value {
    let mut body = json!({"prompt": "a boat", "steps": 10, "width": 256, "height": 192});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Progress that names the job, in order.
fn updates(watcher: &Watcher, id: &str) -> Vec<Value> {
    let told = watcher.about(id).into_iter().map(|told| told.message);
    told.filter(|message| message["type"] == "progress_update")
        .map(|mut message| message["data"].take())
        .collect()
}

async fn backend(http: &Http, id: &str) -> Value {
    let backends = http.get("/generation/backends").await.json;
    let found = backends["backends"].as_array().into_iter().flatten().find(|backend| backend["id"] == id);
    found.cloned().unwrap_or_default()
}

#[tokio::test]
async fn one_backend_of_each_dialect_is_found_out_and_completes_every_kind_of_job() {
    let mut sims = Vec::new();
    for (_, dialect) in DIALECTS {
        sims.push(start(dialect, Duration::from_millis(600)).await);
    }
    let backends: Vec<_> = DIALECTS.iter().zip(&sims).map(|((name, _), sim)| (*name, sim.url())).collect();
    let stack = Stack::start(&backends).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    for (name, _) in DIALECTS {
        until("the backend is idle", async || (backend(&http, name).await["state"] == "idle").then_some(()))
            .await;
        let state = backend(&http, name).await;
        assert_eq!(
            (&state["dialect"], &state["model"]),
            (&json!(name), &json!("Diffusers/tiny-sd")),
            "{state}"
        );
    }
    let from = json!({"init_images": [picture()], "denoising_strength": 0.5});
    let mut jobs = Vec::new();
    for (name, dialect) in DIALECTS {
        let shortened = if dialect == Dialect::Sdnext { 10 } else { 6 };
        for (kind, more, images, steps) in [
            ("plain", json!({}), 1, 10),
            ("three", json!({"n_iter": 3}), 3, 30),
            ("from an image", from.clone(), 1, shortened),
            ("another checkpoint", json!({"model": "Diffusers/tiny-sd-b"}), 1, 10),
        ] {
            let mut body = job(&more);
            body["backend"] = json!(name);
            body["prompt"] = json!(format!("{kind} on {name}"));
            jobs.push((http.submit(&body).await, name, kind, images, steps));
        }
    }
    for (id, name, kind, images, steps) in &jobs {
        watcher.ended(id).await;
        let ended = http.ended(id).await;
        assert_eq!(
            (&ended["status"], &ended["backend"]),
            (&json!("completed"), &json!(name)),
            "{kind}: {ended}"
        );
        assert_eq!(ended["images"].as_array().map(Vec::len), Some(*images), "{kind} on {name}");
        for url in ended["images"].as_array().unwrap() {
            let answer = http.get(url.as_str().unwrap()).await;
            assert_eq!(check::decoded_size(&answer.bytes), (256, 192), "{kind} on {name}");
        }
        check::messages(id, &watcher.about(id));
        let updates = updates(&watcher, id);
        let most = updates.iter().filter_map(|update| update["current_step"].as_u64()).max();
        assert!(most.is_some_and(|most| most * 2 >= *steps), "{kind} on {name}: {most:?} of {steps}");
        let last = updates.last().unwrap();
        assert_eq!(
            (&last["total_steps"], &last["images"]),
            (&json!(steps), &json!(images)),
            "{kind} on {name}"
        );
    }
    for sim in &sims {
        assert_eq!(sim.truth().model.as_deref(), Some("Diffusers/tiny-sd-b"));
    }
}

#[tokio::test]
async fn a_task_is_followed_step_by_step_and_never_ahead_of_the_truth() {
    for dialect in [Dialect::A1111, Dialect::Forge] {
        let (step_time, decode_time) = (Duration::from_millis(1500), Duration::from_secs(4));
        let config = Config { dialect, step_time, decode_time, ..Config::default() };
        let sim = Sim::with(config).await.unwrap();
        let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
        let mut watcher = stack.watcher().await.unwrap();
        watcher.subscribe(None).await;
        let id = stack.http().submit(&job(&json!({"n_iter": 2}))).await;
        let mut steps_there = 0;
        until("the job has ended", async || {
            // What is told was seen before, so the truth of now is never behind it.
            let told =
                updates(&watcher, &id).iter().filter_map(|update| update["current_step"].as_u64()).max();
            let truth = sim.truth();
            if let Some(running) = truth.running {
                steps_there = u64::from(running.pass.saturating_sub(1) * 10 + running.step);
                assert!(told.unwrap_or(0) <= steps_there, "{told:?} told, {steps_there} done");
            }
            (stack.http().job(&id).await["status"] == "completed").then_some(())
        })
        .await;
        watcher.ended(&id).await;
        check::messages(&id, &watcher.about(&id));
        let updates = updates(&watcher, &id);
        let steps: std::collections::BTreeSet<u64> =
            updates.iter().filter_map(|update| update["current_step"].as_u64()).collect();
        assert!(steps.len() >= 14, "nearly every step was told: {steps:?}");
        assert!(updates.iter().any(|update| update["image"] == 2 && update["source"] == "measured"));
        for stage in ["preparing", "sampling", "decoding"] {
            assert!(updates.iter().any(|update| update["stage"] == stage), "{stage}: {updates:?}");
        }
    }
}

#[tokio::test]
async fn work_that_slips_in_ahead_of_a_task_is_neither_reported_as_the_jobs_nor_interrupted() {
    let sim = start(Dialect::A1111, Duration::from_millis(400)).await;
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    // The look just before our post reads idle although the other's is there already, as when two posts cross.
    let held = sim.handle.hold().await;
    let foreign = Http::to(sim.url().trim_start_matches("http://"));
    let body = json!({"prompt": "somebody else's", "steps": 30, "width": 256, "height": 256});
    let post = foreign.post("/sdapi/v1/txt2img", &body);
    let ours = async {
        until("the other's post is there", async || (sim.truth().posts_received == 1).then_some(())).await;
        let id = http.submit(&job(&json!({"prompt": "ours", "steps": 60}))).await;
        until("our post waits", async || (sim.truth().waiting == 2).then_some(())).await;
        drop(held);
        until("the other's render is half done", async || {
            sim.truth().running.filter(|running| running.prompt != "ours" && running.step >= 15)
        })
        .await;
        let told = updates(&watcher, &id);
        assert!(!told.is_empty());
        for update in &told {
            assert_eq!(
                (&update["current_step"], &update["stage"]),
                (&json!(0), &json!("preparing")),
                "{update}"
            );
            assert_eq!((&update["progress"], &update["source"]), (&json!(0.0), &json!("held")), "{update}");
        }
        assert!(http.post(&format!("/generation/jobs/{id}/cancel"), &json!(null)).await.status.is_success());
        http.ended(&id).await
    };
    let (answer, ended) = tokio::join!(post, ours);
    assert_eq!(answer.status, 200);
    assert_eq!(ended["status"], "cancelled", "{ended}");
    let truth = sim.truth();
    let theirs = truth.finished.iter().find(|job| job.prompt == "somebody else's").unwrap();
    assert_eq!((theirs.outcome.as_str(), theirs.steps_done), ("done", 30), "left alone to its end");
    let mine = truth.finished.iter().find(|job| job.prompt == "ours").unwrap();
    assert!(mine.steps_done < 60, "and ours was stopped once it ran");
}

#[tokio::test]
async fn an_unfinished_picture_of_full_size_is_no_success_and_a_failed_allocation_is_named() {
    let sim = start(Dialect::A1111, Duration::from_millis(600)).await;
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let id = http.submit(&job(&json!({"steps": 30, "max_attempts": 1}))).await;
    until("it renders", async || sim.truth().running.filter(|running| running.step >= 3)).await;
    let person = Http::to(sim.url().trim_start_matches("http://"));
    assert_eq!(person.post("/sdapi/v1/interrupt", &json!({})).await.status, 200);
    let ended = http.ended(&id).await;
    assert_eq!((&ended["status"], &ended["images"]), (&json!("failed"), &json!([])), "{ended}");
    assert_eq!(ended["error"]["code"], "no_images", "{ended}");
    sim.handle.arm(Fault::OutOfMemoryAfterStep, 1);
    let ended = http.ended(&http.submit(&job(&json!({"max_attempts": 1}))).await).await;
    assert_eq!(ended["error"]["code"], "out_of_memory", "{ended}");
    let fine = http.ended(&http.submit(&job(&json!({}))).await).await;
    assert_eq!(fine["status"], "completed", "{fine}");
}

#[tokio::test]
async fn a_server_that_comes_back_as_another_is_found_out_again() {
    let first = start(Dialect::Sdnext, Duration::from_millis(100)).await;
    let address = first.address();
    let stack = Stack::start(&[("gpu", first.url())]).await.unwrap();
    let http = stack.http();
    let is = async |dialect: &str, state: &str| {
        until(&format!("the backend is {state} as {dialect}"), async || {
            let seen = backend(&http, "gpu").await;
            (seen["dialect"] == dialect && seen["state"] == state).then_some(())
        })
        .await;
    };
    is("sdnext", "idle").await;
    first.handle.kill();
    is("sdnext", "down").await;
    let config =
        Config { dialect: Dialect::Forge, step_time: Duration::from_millis(100), ..Config::default() };
    let listener = until("its port is free", async || TcpListener::bind(&address).await.ok()).await;
    let mut second = JoinSet::new();
    second.spawn(stepcast_sdnext_sim::start(config, listener, CancellationToken::new()));
    is("forge", "idle").await;
    let ended = http.ended(&http.submit(&job(&json!({"steps": 2}))).await).await;
    assert_eq!(ended["status"], "completed", "{ended}");
}

#[tokio::test]
async fn a_task_that_outlives_its_poller_is_known_by_its_name_and_done_again() {
    let sim = start(Dialect::A1111, Duration::from_millis(400)).await;
    let folder = tempfile::tempdir().unwrap();
    let (mut first, http) = up(&folder, &sim, false).await;
    let id = http.submit(&job(&json!({"steps": 60, "max_attempts": 3}))).await;
    until("the render has begun", async || sim.truth().running.filter(|running| running.step >= 2)).await;
    first.signal(Signal::KILL);
    first.end().await;
    let (_second, http) = up(&folder, &sim, false).await;
    let ended = http.ended(&id).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("completed"), &json!(2)), "{ended}");
    let truth = sim.truth();
    let outcomes: Vec<&str> = truth.finished.iter().map(|render| render.outcome.as_str()).collect();
    assert_eq!(outcomes, ["interrupted", "done"], "never two renders beside each other");
}
