//! Every recorded way to fail ends in the right `error.code`, and what can be tried again is.

use std::time::Duration;

use serde_json::{Value, json};
use stepcast_sdnext_sim::{Config, Fault};
use stepcast_tests::check;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use stepcast_tests::wait::until;

fn job(more: &Value) -> Value {
    let mut body =
        json!({"prompt": "a red cube", "steps": 4, "width": 256, "height": 256, "max_attempts": 1});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn every_fault_of_a_server_ends_in_its_own_code() {
    let sim = Sim::start(Duration::from_millis(100)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    for (fault, code) in [
        (Fault::OutOfMemoryBeforeFirstStep, "out_of_memory"),
        (Fault::OutOfMemoryAfterStep, "out_of_memory"),
        (Fault::NoImages, "no_images"),
        (Fault::WrongSize, "wrong_size"),
        (Fault::TruncatedImage, "no_images"),
        (Fault::Http500, "backend_unavailable"),
        (Fault::HttpStatus(429), "backend_unavailable"),
        (Fault::HttpStatus(422), "rejected"),
        (Fault::DropConnection, "backend_unavailable"),
    ] {
        sim.handle.arm(fault, 1);
        let ended = http.ended(&http.submit(&job(&json!({}))).await).await;
        assert_eq!(
            (&ended["status"], &ended["error"]["code"]),
            (&json!("failed"), &json!(code)),
            "{fault}: {ended}"
        );
        assert_eq!(ended["images"], json!([]), "{fault}");
        assert!(ended["error_message"].as_str().is_some_and(|text| text.len() > 10), "{fault}: {ended}");
        // A success between them keeps the server in service.
        assert_eq!(
            http.ended(&http.submit(&job(&json!({}))).await).await["status"],
            "completed",
            "after {fault}"
        );
    }
    let unknown = http.ended(&http.submit(&job(&json!({"sampler_name": "NoSuchSampler"}))).await).await;
    assert_eq!(unknown["error"]["code"], "rejected", "{unknown}");
    assert_eq!(unknown["error"]["retryable"], false);
    let no_model = http.ended(&http.submit(&job(&json!({"model": "no-such-model"}))).await).await;
    assert_eq!(no_model["error"]["code"], "no_images", "{no_model}");
    let fine = http.ended(&http.submit(&job(&json!({"model": "Diffusers/tiny-sd"}))).await).await;
    assert_eq!(fine["status"], "completed", "the server serves again: {fine}");
}

#[tokio::test]
async fn a_failure_that_may_pass_is_tried_again_and_every_attempt_is_told() {
    let sim = Sim::start(Duration::from_millis(50)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    sim.handle.arm(Fault::Http500, 2);
    let id = http.submit(&job(&json!({"max_attempts": 3}))).await;
    watcher.ended(&id).await;
    let ended = http.ended(&id).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("completed"), &json!(3)), "{ended}");
    check::messages(&id, &watcher.about(&id));
    let kinds: Vec<Value> = watcher
        .about(&id)
        .into_iter()
        .map(|told| told.message["type"].clone())
        .filter(|kind| kind != "progress_update")
        .collect();
    assert_eq!(
        kinds,
        [
            "generation_queued",
            "generation_started",
            "generation_retrying",
            "generation_started",
            "generation_retrying",
            "generation_started",
            "generation_complete"
        ]
    );
    assert_eq!(sim.truth().renders_started, 3);
}

#[tokio::test]
async fn a_render_that_stands_still_is_told_interrupted_and_tried_elsewhere() {
    let sims = [
        Sim::start(Duration::from_millis(50)).await.unwrap(),
        Sim::start(Duration::from_millis(50)).await.unwrap(),
    ];
    // Between two steps 15 s without a change are nothing to speak of, so that is when a stall is first told.
    let timeout = Duration::from_secs(18);
    let poller = vec![("STEPCAST_STALL_TIMEOUT", "18s".to_owned())];
    let setup = Setup { poller, ..Setup::default() };
    let stack = Stack::start_on(setup, &[("still", sims[0].url()), ("other", sims[1].url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    sims[0].handle.arm(Fault::Hang, 1);
    http.post("/generation/backends/other/pause", &json!(null)).await;
    let id = http.submit(&job(&json!({"steps": 8, "max_attempts": 2}))).await;
    until("it stands still", async || sims[0].truth().running.filter(|running| running.step == 4)).await;
    let stood = sims[0].truth().running.unwrap().step_changed_at;
    http.post("/generation/backends/other/resume", &json!(null)).await;

    let retrying = watcher.wait("the retry", |message| message["type"] == "generation_retrying").await;
    let data = &retrying["data"];
    assert_eq!(
        (&data["reason"], &data["error"]["code"], &data["backend"]),
        (&json!("stalled"), &json!("stalled"), &json!("still")),
        "{retrying}"
    );
    let ended = http.ended(&id).await;
    assert_eq!((&ended["status"], &ended["backend"]), (&json!("completed"), &json!("other")), "{ended}");
    watcher.ended(&id).await;
    check::messages(&id, &watcher.about(&id));

    let mut ages = Vec::new();
    for told in watcher.about(&id) {
        let data = &told.message["data"];
        assert_eq!(data["stalled_seconds"].is_number(), data["stalled"] == true, "{data}");
        if let Some(age) = data["stalled_seconds"].as_f64() {
            assert_eq!(
                (&data["attempt"], &data["current_step"], &data["eta_seconds"]),
                (&json!(1), &json!(4), &json!(null))
            );
            ages.push(age);
        }
    }
    assert!(ages.len() >= 2 && ages.is_sorted() && ages[0] >= 15.0, "the age of the last change: {ages:?}");
    let truth = sims[0].truth();
    assert!(truth.interrupts_received >= 1);
    assert_eq!((truth.finished.len(), truth.finished[0].outcome.as_str()), (1, "interrupted"));
    let patience = Duration::from_micros(u64::try_from(truth.finished[0].ended_at - stood).unwrap());
    assert!(patience >= timeout, "it was given its time: {patience:?}");
    assert_eq!(sims[1].truth().interrupts_received, 0);
}

#[tokio::test]
async fn a_server_killed_in_a_render_makes_the_job_wait_for_another() {
    let first = Sim::start(Duration::from_millis(200)).await.unwrap();
    let stack = Stack::start(&[("first", first.url())]).await.unwrap();
    let http = stack.http();
    let id = http.submit(&job(&json!({"steps": 20, "max_attempts": 2}))).await;
    until("the render has begun", async || first.truth().running.filter(|running| running.step >= 1)).await;
    first.handle.kill();
    until("the loss is noticed", async || (http.job(&id).await["status"] == "pending").then_some(())).await;
    until("the backend is seen as down", async || {
        let backends = http.get("/generation/backends").await.json;
        (backends["backends"][0]["state"] == "down").then_some(())
    })
    .await;
    let job = http.job(&id).await;
    assert_eq!(job["attempt"], 1, "a server that is down uses up no attempts: {job}");
    assert_eq!(job["waiting_for"], "backend_down", "{job}");
}

#[tokio::test]
async fn a_server_behind_basic_authentication_is_used_with_its_password_alone() {
    let config = Config {
        step_time: Duration::from_millis(50),
        auth: Some("bob:s3cret".to_owned()),
        ..Config::default()
    };
    let sim = Sim::with(config).await.unwrap();
    let right = sim.url().replace("http://", "http://bob:s3cret@");
    let wrong = sim.url().replace("http://", "http://bob:guess@");
    let stack = Stack::start(&[("right", right), ("wrong", wrong)]).await.unwrap();
    let http = stack.http();
    let ended = http.ended(&http.submit(&job(&json!({}))).await).await;
    assert_eq!((&ended["status"], &ended["backend"]), (&json!("completed"), &json!("right")), "{ended}");
    let backends = http.get("/generation/backends").await;
    let text = String::from_utf8_lossy(&backends.bytes).into_owned();
    assert!(!text.contains("s3cret") && !text.contains("guess"), "no password is shown: {text}");
    let state = |id: &str| {
        let all = backends.json["backends"].as_array().unwrap().clone();
        all.into_iter().find(|backend| backend["id"] == id).unwrap()
    };
    assert_eq!(state("wrong")["state"], "down");
}

#[tokio::test]
async fn work_of_somebody_else_is_waited_for_and_never_reported_as_a_jobs() {
    let sim = Sim::start(Duration::from_millis(150)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    let foreign = stepcast_tests::client::Http::to(sim.url().trim_start_matches("http://"));
    let body = json!({"prompt": "somebody else's", "steps": 20, "width": 512, "height": 512});
    let post = foreign.post("/sdapi/v1/txt2img", &body);
    let ours = async {
        until("the other's render has begun", async || {
            sim.truth().running.filter(|running| running.step >= 1)
        })
        .await;
        until("it is shown as foreign", async || {
            let backends = http.get("/generation/backends").await.json;
            (backends["backends"][0]["state"] == "foreign").then_some(())
        })
        .await;
        let id = http.submit(&job(&json!({"prompt": "ours"}))).await;
        let reason = async |id: &str| http.job(id).await["waiting_for"].as_str().map(str::to_owned);
        assert_eq!(reason(&id).await.as_deref(), Some("foreign_work"));
        let nowhere = http.submit(&job(&json!({"pool": "nowhere"}))).await;
        assert_eq!(reason(&nowhere).await.as_deref(), Some("no_capable_backend"));
        http.ended(&id).await
    };
    let (answer, ended) = tokio::join!(post, ours);
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json["images"].as_array().map(Vec::len), Some(1), "the other's render was left alone");
    assert_eq!(ended["status"], "completed", "{ended}");
    let truth = sim.truth();
    assert_eq!(truth.interrupts_received, 0);
    let theirs = truth.finished.iter().find(|job| job.prompt == "somebody else's").unwrap();
    let started =
        watcher.wait("our start", |message| message["type"] == "generation_started").await["timestamp"]
            .as_str()
            .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok())
            .unwrap();
    assert!(
        started.timestamp_micros() >= theirs.ended_at,
        "`started` waits for the render, not for the claim"
    );
}
