//! Who runs what, when, and where.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use stepcast_sdnext_sim::{Config, Fault};
use stepcast_tests::client::Http;
use stepcast_tests::nats::settled;
use stepcast_tests::process::binary;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use stepcast_tests::wait::{until, within};
use tokio::process::Command;
use tokio::time::sleep;

fn job(prompt: &str, more: &Value) -> Value {
    let mut body = json!({"prompt": prompt, "steps": 2, "width": 256, "height": 256});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn order_of(sim: &Sim, count: usize) -> Vec<String> {
    until("all have been rendered", async || (sim.truth().finished.len() == count).then_some(())).await;
    sim.truth().finished.into_iter().map(|job| job.prompt).collect()
}

#[tokio::test]
async fn high_goes_before_normal_and_normal_before_low() {
    let sim = Sim::start(Duration::from_millis(400)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    http.submit(&job("first", &json!({"steps": 10}))).await;
    until("the first one renders", async || sim.truth().running).await;
    for (prompt, priority) in [("low", "low"), ("normal", "normal"), ("high", "high"), ("high too", "high")] {
        http.submit(&job(prompt, &json!({"priority": priority}))).await;
    }
    let waiting = http.get("/generation/jobs?status=pending").await.json;
    let place = |prompt: &str| {
        let jobs = waiting["jobs"].as_array().unwrap();
        jobs.iter().find(|job| job["params"]["prompt"] == prompt).unwrap()["position"].as_i64()
    };
    assert_eq!(
        [place("high"), place("high too"), place("normal"), place("low")],
        [Some(1), Some(2), Some(3), Some(4)]
    );
    assert_eq!(order_of(&sim, 5).await, ["first", "high", "high too", "normal", "low"]);
}

#[tokio::test]
async fn work_for_the_loaded_checkpoint_goes_first() {
    let models = vec!["Diffusers/tiny-sd".to_owned(), "Diffusers/tiny-sd-b".to_owned()];
    let config = Config {
        step_time: Duration::from_millis(300),
        load_time: Duration::from_millis(200),
        models,
        rate_limit: 0,
        ..Config::default()
    };
    let sim = Sim::with(config).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    http.submit(&job("first", &json!({"steps": 12, "model": "Diffusers/tiny-sd"}))).await;
    until("the first one renders", async || sim.truth().running).await;
    for (prompt, model) in [("b1", "tiny-sd-b"), ("a1", "tiny-sd"), ("b2", "tiny-sd-b"), ("a2", "tiny-sd")] {
        http.submit(&job(prompt, &json!({"model": format!("Diffusers/{model}")}))).await;
    }
    let waiting = http.get("/generation/jobs?status=pending").await.json;
    let reasons: BTreeMap<&str, &Value> = waiting["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| (job["params"]["prompt"].as_str().unwrap(), &job["waiting_for"]))
        .collect();
    let (ahead, swap) = (&json!("ahead"), &json!("model_swap"));
    assert_eq!(reasons, BTreeMap::from([("a1", ahead), ("a2", ahead), ("b1", swap), ("b2", swap)]));
    assert_eq!(order_of(&sim, 5).await, ["first", "a1", "a2", "b1", "b2"]);
    assert_eq!(sim.truth().loads, 1, "one change of checkpoint, not three");
}

#[tokio::test]
async fn a_job_that_is_passed_over_for_its_checkpoint_says_so_until_its_turn_has_come() {
    let sim = Sim::start(Duration::from_millis(300)).await.unwrap();
    let api = vec![("STEPCAST_MAX_AFFINITY_WAIT", "6s".to_owned())];
    let setup = Setup { api, ..Setup::default() };
    let stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    http.submit(&job("first", &json!({"steps": 160, "model": "Diffusers/tiny-sd"}))).await;
    until("the first one renders", async || sim.truth().running).await;
    let other = http.submit(&job("other", &json!({"model": "Diffusers/tiny-sd-b"}))).await;
    let reason = async || http.job(&other).await["waiting_for"].as_str().map(str::to_owned);
    assert_eq!(reason().await.as_deref(), Some("ahead"), "nothing goes before it");
    http.submit(&job("loaded", &json!({"model": "Diffusers/tiny-sd"}))).await;
    for expected in ["model_swap", "ahead"] {
        until(expected, async || (reason().await.as_deref() == Some(expected)).then_some(())).await;
    }
    assert_eq!(order_of(&sim, 3).await, ["first", "other", "loaded"]);
}

#[tokio::test]
async fn the_estimated_wait_is_what_the_queue_really_takes() {
    let sim = Sim::start(Duration::from_millis(100)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let large = |prompt: &str, steps: u32| json!({"prompt": prompt, "steps": steps});
    for steps in [4, 12] {
        http.ended(&http.submit(&large("measured", steps)).await).await;
    }
    http.submit(&large("renders", 20)).await;
    until("it renders", async || sim.truth().running.filter(|running| running.prompt == "renders")).await;
    let mut ids = Vec::new();
    for (prompt, steps) in [("one", 16), ("two", 24), ("three", 16), ("four", 8)] {
        ids.push(http.submit(&large(prompt, steps)).await);
    }
    let mut told = Vec::new();
    for id in &ids {
        let job = http.job(id).await;
        let at = sim.truth().now;
        let seconds = job["estimated_wait_seconds"].as_f64();
        told.push((job["params"]["prompt"].clone(), seconds.unwrap_or_else(|| panic!("{job}")), at));
    }
    assert!(told.is_sorted_by(|one, next| one.1 < next.1), "each waits for those before it: {told:?}");
    for id in &ids {
        assert!(http.ended(id).await["estimated_wait_seconds"].is_null());
    }
    let rendered = sim.truth().finished;
    for (prompt, told, at) in &told {
        let begun = rendered.iter().find(|job| *prompt == job.prompt).unwrap().started_at;
        let really = Duration::from_micros(u64::try_from(begun - at).unwrap()).as_secs_f64();
        assert!(
            (really / 2.0..really * 2.0).contains(told),
            "{prompt} was told {told} s and waited {really} s"
        );
    }
}

#[tokio::test]
async fn what_failed_on_one_backend_is_tried_on_another() {
    let sims = [
        Sim::start(Duration::from_millis(200)).await.unwrap(),
        Sim::start(Duration::from_millis(200)).await.unwrap(),
    ];
    for sim in &sims {
        // Whichever takes it first fails; the other must not be the same one.
        sim.handle.arm(Fault::Http500, 1);
    }
    let stack = Stack::start(&[("one", sims[0].url()), ("two", sims[1].url())]).await.unwrap();
    let http = stack.http();
    let ended = http.ended(&http.submit(&job("elsewhere", &json!({"max_attempts": 2}))).await).await;
    assert_eq!(ended["status"], "failed", "both fail once: {ended}");
    let tried: Vec<&Value> =
        ended["error"]["attempts"].as_array().unwrap().iter().map(|attempt| &attempt["backend"]).collect();
    assert_eq!(tried.len(), 2, "{ended}");
    assert_ne!(tried[0], tried[1], "{ended}");
}

#[tokio::test]
async fn a_job_whose_time_is_up_ends_as_deadline_waiting_or_running() {
    let sim = Sim::start(Duration::from_millis(500)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let running = http.submit(&job("runs", &json!({"steps": 300, "deadline_seconds": 4}))).await;
    until("it renders", async || sim.truth().running).await;
    let waiting = http.submit(&job("waits", &json!({"deadline_seconds": 1}))).await;
    for id in [&waiting, &running] {
        let ended = http.ended(id).await;
        assert_eq!(
            (&ended["status"], &ended["error"]["code"]),
            (&json!("failed"), &json!("deadline")),
            "{ended}"
        );
    }
    assert_eq!(http.job(&waiting).await["attempt"], 0);
    until("the server is let go", async || sim.truth().running.is_none().then_some(())).await;
    let after = http.ended(&http.submit(&job("after", &json!({}))).await).await;
    assert_eq!(after["status"], "completed", "{after}");
}

#[tokio::test]
async fn a_paused_backend_finishes_what_it_has_and_takes_no_more() {
    let sim = Sim::start(Duration::from_millis(200)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let first = http.submit(&job("first", &json!({"steps": 8}))).await;
    until("it renders", async || sim.truth().running).await;
    assert_eq!(http.post("/generation/backends/gpu/pause", &json!(null)).await.json["paused"], true);
    let second = http.submit(&job("second", &json!({}))).await;
    assert_eq!(http.ended(&first).await["status"], "completed");
    until("it is idle and paused", async || {
        let backend = http.get("/generation/backends").await.json["backends"][0].clone();
        (backend["state"] == "idle" && backend["paused"] == true).then_some(())
    })
    .await;
    assert_eq!(http.job(&second).await["waiting_for"], "paused");
    assert_eq!(sim.truth().renders_started, 1);
    http.post("/generation/backends/gpu/resume", &json!(null)).await;
    assert_eq!(http.ended(&second).await["status"], "completed");
}

/// Runs the command line against this api to its end; its code, and all that it said.
async fn stepcast(http: &Http, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(binary("stepcast"));
    command.args(arguments).env("STEPCAST_SERVER", http.url()).kill_on_drop(true);
    let output = within("the command ends", command.output()).await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// The only backend, once it is in this state.
async fn backend_in(http: &Http, state: &str) -> Value {
    until(&format!("the backend is {state}"), async || {
        let backend = http.get("/generation/backends").await.json["backends"][0].clone();
        (backend["state"] == state).then_some(backend)
    })
    .await
}

#[tokio::test]
async fn a_drained_backend_ends_what_it_has_says_so_and_stays_empty_until_it_is_resumed() {
    let sim = Sim::start(Duration::from_millis(300)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let first = http.submit(&job("first", &json!({"steps": 40}))).await;
    until("it renders", async || sim.truth().running).await;
    let rest = async {
        let busy = until("it is to be emptied", async || {
            let backend = http.get("/generation/backends").await.json["backends"][0].clone();
            (backend["draining"] == true).then_some(backend)
        })
        .await;
        let second = http.submit(&job("second", &json!({"backend": "gpu"}))).await;
        (busy, second)
    };
    let ((code, said), (busy, second)) = tokio::join!(stepcast(&http, &["backends", "--drain", "gpu"]), rest);
    assert_eq!(
        (&busy["state"], &busy["drained"], &busy["paused"]),
        (&json!("busy"), &json!(false), &json!(false)),
        "{busy}"
    );
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains(&format!("gpu finishes {first}")), "{said}");
    assert!(said.ends_with("gpu is empty and can be shut down\n"), "{said}");
    assert_eq!(http.job(&first).await["status"], "completed");
    let drained = backend_in(&http, "drained").await;
    assert_eq!((&drained["draining"], &drained["drained"]), (&json!(true), &json!(true)), "{drained}");
    assert_eq!(http.job(&second).await["waiting_for"], "paused");

    stack.poller.signal(Signal::TERM);
    stack.poller.end().await;
    stack.api.signal(Signal::TERM);
    stack.api.end().await;
    stack.restart_api().await.unwrap();
    stack.restart_poller().unwrap();
    let http = stack.http();
    assert_eq!(backend_in(&http, "drained").await["drained"], true, "it stays so, whatever restarts");
    assert_eq!(
        (http.job(&second).await["waiting_for"].as_str(), sim.truth().renders_started),
        (Some("paused"), 1)
    );

    assert_eq!(stepcast(&http, &["backends", "--resume", "gpu"]).await.0, Some(0));
    assert_eq!(http.ended(&second).await["status"], "completed");
    let idle = backend_in(&http, "idle").await;
    assert_eq!((&idle["draining"], &idle["drained"]), (&json!(false), &json!(false)), "{idle}");
}

#[tokio::test]
async fn an_empty_backend_is_drained_at_once_and_an_unknown_one_is_named() {
    let sim = Sim::start(Duration::from_millis(50)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    backend_in(&http, "idle").await;
    let (code, said) = stepcast(&http, &["--json", "backends", "--drain", "gpu", "--no-wait"]).await;
    let answer: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(answer, json!({"id": "gpu", "paused": false, "draining": true, "drained": true}));
    assert_eq!(code, Some(0));
    backend_in(&http, "drained").await;
    for order in ["--drain", "--pause", "--resume"] {
        let (code, said) = stepcast(&http, &["backends", order, "gup"]).await;
        assert_eq!((code, said.as_str()), (Some(1), "stepcast: No backend is called gup; known are gpu.\n"));
    }
    let paused = http.post("/generation/backends/gpu/pause", &json!(null)).await.json;
    assert_eq!(
        paused,
        json!({"id": "gpu", "paused": true, "draining": false, "drained": false}),
        "the last word"
    );
    backend_in(&http, "idle").await;
}

#[tokio::test]
async fn somebody_elses_queued_render_is_not_taken_for_a_left_over() {
    let sim = Sim::start(Duration::from_millis(300)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let ours = http.submit(&job("ours", &json!({"steps": 8}))).await;
    until("ours renders", async || sim.truth().running).await;
    let person = stepcast_tests::client::Http::to(sim.url().trim_start_matches("http://"));
    let theirs_body = json!({"prompt": "theirs", "steps": 20, "width": 256, "height": 256});
    let theirs = person.post("/sdapi/v1/txt2img", &theirs_body);
    let rest = async {
        assert_eq!(http.ended(&ours).await["status"], "completed");
        let next = http.submit(&job("next", &json!({}))).await;
        until("theirs renders", async || sim.truth().running.filter(|job| job.prompt == "theirs")).await;
        // Asked for while theirs runs: it must not hit theirs.
        http.post(&format!("/generation/jobs/{next}/cancel"), &json!(null)).await;
        http.ended(&next).await
    };
    let (answer, next) = tokio::join!(theirs, rest);
    assert_eq!(next["status"], "cancelled", "{next}");
    assert_eq!(answer.json["images"].as_array().map(Vec::len), Some(1));
    assert_eq!(sim.truth().interrupts_received, 0, "nobody's render was interrupted");
    assert!(sim.truth().finished.iter().any(|job| job.prompt == "theirs" && job.outcome == "done"));
}

#[tokio::test]
async fn an_idle_backend_is_woken_by_work_and_asks_about_once_a_second_without_any() {
    let sim = Sim::start(Duration::from_millis(1)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let client = async_nats::connect(stack.nats.url()).await.unwrap();
    let mut claims = client.subscribe("stepcast.v1.rpc.claim").await.unwrap();
    settled(&client).await.unwrap();
    sleep(Duration::from_secs(6)).await;
    let mut asked = 0;
    while claims.next().now_or_never().flatten().is_some() {
        asked += 1;
    }
    assert!((3..=9).contains(&asked), "it asked {asked} times in six seconds");

    let mut waits = Vec::new();
    for n in 0..15_u64 {
        // The moments at which it asks by itself are a second apart, so this meets them nowhere near.
        sleep(Duration::from_millis(100 + 37 * n)).await;
        let asked_at = sim.truth().now;
        let id = http.submit(&json!({"prompt": "quick", "steps": 1, "width": 64, "height": 64})).await;
        http.ended(&id).await;
        let render = sim.truth().finished.pop().expect("a job that has ended was rendered");
        waits.push(Duration::from_micros(u64::try_from(render.started_at - asked_at).unwrap()));
    }
    waits.sort();
    assert!(waits[7] < Duration::from_millis(250), "without a wake half of them wait for 500 ms: {waits:?}");
}
