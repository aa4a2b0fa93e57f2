//! The stand-in as A1111 and as Forge: what was read in their sources, held against what it answers.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use stepcast_sdnext_sim::{Config, Dialect, Fault};
use tokio::time::sleep;

use crate::server::{Server, body, quick};

const MINE: &str = "stepcast(mine)";

async fn start(dialect: Dialect) -> Server {
    Server::start(Config { dialect, rate_limit: 300, ..quick() }).await
}

fn job(more: &Value) -> Value {
    let mut job = json!({"prompt": "a boat", "steps": 6, "width": 256, "height": 192, "seed": 5,
        "force_task_id": MINE});
    job.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    job
}

async fn internal(server: &Server, id: &str) -> Value {
    server.post("/internal/progress", &json!({"id_task": id, "live_preview": false})).await.1
}

fn image_size(image: &Value) -> (usize, usize) {
    let bytes = STANDARD.decode(image.as_str().expect("a text")).expect("base64");
    let size = imagesize::blob_size(&bytes).expect("an image");
    (size.width, size.height)
}

/// Posts, and asks for task and state until the answer is there.
async fn watch(server: &Server, path: &str, request: &Value) -> ((u16, Value), Vec<(Value, Value)>) {
    let mut seen = Vec::new();
    let posting = server.post(path, request);
    tokio::pin!(posting);
    let answer = loop {
        let looking = async {
            let state = server.get("/sdapi/v1/progress?skip_current_image=true").await;
            (internal(server, MINE).await, state)
        };
        tokio::select! {
            answer = &mut posting => break answer,
            look = looking => seen.push(look),
        }
        sleep(Duration::from_millis(2)).await;
    };
    (answer, seen)
}

#[tokio::test]
async fn each_dialect_can_be_told_from_the_others() {
    let server = start(Dialect::Sdnext).await;
    assert_eq!(server.get("/sdapi/v1/version").await["app"], "sd.next");
    assert_eq!(server.get("/sdapi/v1/checkpoint").await["class"], "StableDiffusionPipeline");
    for dialect in [Dialect::A1111, Dialect::Forge] {
        let server = start(dialect).await;
        for path in ["version", "checkpoint", "status", "history", "log"] {
            let path = format!("/sdapi/v1/{path}");
            assert_eq!(server.send(Method::GET, &path, None).await.status(), 404, "{path}");
        }
        let options = server.get("/sdapi/v1/options").await;
        assert_eq!(options["sd_model_checkpoint"], "Diffusers/tiny-sd");
        let flags = server.get("/sdapi/v1/cmd-flags").await;
        let is_forge = dialect == Dialect::Forge;
        assert_eq!(flags.get("forge_ref_a1111_home").is_some(), is_forge);
        assert_eq!(options.get("forge_preset").is_some(), is_forge);
        assert!(server.get("/sdapi/v1/progress").await.get("id").is_none());
    }
}

#[tokio::test]
async fn a_named_task_is_active_until_it_is_completed_and_its_passes_are_counted() {
    for dialect in [Dialect::A1111, Dialect::Forge] {
        let server = start(dialect).await;
        let (answer, seen) = watch(&server, "/sdapi/v1/txt2img", &job(&json!({"n_iter": 3}))).await;
        assert_eq!(answer.0, 200);
        assert_eq!(answer.1["images"].as_array().map(Vec::len), Some(3));
        let active: Vec<_> = seen.iter().filter(|(task, _)| task["active"] == true).collect();
        let fractions: Vec<f64> =
            active.iter().map(|(task, _)| task["progress"].as_f64().expect("a number")).collect();
        assert!(fractions.is_sorted(), "over the whole job: {fractions:?}");
        assert!(fractions.iter().any(|fraction| *fraction > 0.5), "{fractions:?}");
        for number in 0..3 {
            let counted = |state: &Value| {
                state["job_no"] == number && state["job_count"] == 3 && state["sampling_steps"] == 6
            };
            assert!(active.iter().any(|(_, state)| counted(&state["state"])), "pass {number}");
        }
        assert!(active.iter().all(|(_, state)| state["state"]["sampling_step"].as_u64() < Some(6)));
        let after = internal(&server, MINE).await;
        assert_eq!((&after["active"], &after["completed"]), (&json!(false), &json!(true)));
        let progress = server.get("/sdapi/v1/progress").await;
        assert_eq!((&progress["progress"], &progress["state"]["job_count"]), (&json!(0.0), &json!(0)));
        assert_eq!(internal(&server, "another").await["completed"], false);
    }
}

#[tokio::test]
async fn a_second_task_is_queued_behind_the_first_and_listed() {
    let server = start(Dialect::A1111).await;
    let first = job(&json!({"force_task_id": "first", "steps": 30}));
    let behind = async {
        server.until("the first runs", async || internal(&server, "first").await["active"] == true).await;
        let second = job(&json!({}));
        let posting = server.txt2img(&second);
        let looking = async {
            server.until("the second waits", async || internal(&server, MINE).await["queued"] == true).await;
            let pending = server.get("/internal/pending-tasks").await;
            assert_eq!(pending, json!({"size": 1, "tasks": [MINE]}));
            let task = internal(&server, MINE).await;
            assert_eq!((&task["active"], &task["progress"]), (&json!(false), &Value::Null));
        };
        tokio::join!(posting, looking).0
    };
    let (first, second) = tokio::join!(server.txt2img(&first), behind);
    assert_eq!((first.0, second.0), (200, 200));
    assert_eq!(server.get("/internal/pending-tasks").await["size"], 0);
}

#[tokio::test]
async fn image_to_image_runs_a_share_of_the_steps_and_one_more() {
    let server = start(Dialect::A1111).await;
    let (_, drawn) = server.txt2img(&job(&json!({}))).await;
    let request = job(&json!({"init_images": [drawn["images"][0]], "steps": 20, "denoising_strength": 0.5}));
    let (answer, seen) = watch(&server, "/sdapi/v1/img2img", &request).await;
    assert_eq!(answer.0, 200);
    let job_name = |state: &Value| state["state"]["job"] == "scripts_img2img";
    assert!(seen.iter().any(|(_, state)| job_name(state) && state["state"]["sampling_steps"] == 11));
    assert_eq!(server.handle.truth().finished.last().expect("a job").steps_done, 11);
}

#[tokio::test]
async fn an_interrupted_picture_comes_unfinished_at_its_full_size() {
    let server = start(Dialect::A1111).await;
    let request = job(&json!({"steps": 40}));
    let stopping = async {
        server
            .until("it runs", async || internal(&server, MINE).await["progress"].as_f64() > Some(0.1))
            .await;
        let response = server.send(Method::POST, "/sdapi/v1/interrupt", None).await;
        assert_eq!(body(response).await, (200, json!({})));
    };
    let (answer, ()) = tokio::join!(server.txt2img(&request), stopping);
    assert_eq!(answer.0, 200);
    let sizes: Vec<_> = answer.1["images"].as_array().expect("a list").iter().map(image_size).collect();
    assert_eq!(sizes, [(256, 192)]);
    assert_eq!(server.get("/sdapi/v1/progress").await["state"]["interrupted"], true, "the flag lingers");
    assert!(server.handle.truth().finished[0].steps_done < 40);
}

#[tokio::test]
async fn errors_have_each_dialects_own_shape() {
    for (dialect, known) in [
        (
            Dialect::A1111,
            json!({"error": "HTTPException", "detail": "Sampler not found", "body": "", "errors": ""}),
        ),
        (Dialect::Forge, json!({"detail": "Sampler not found"})),
    ] {
        let server = start(dialect).await;
        assert_eq!(server.txt2img(&job(&json!({"sampler_name": "none such"}))).await, (404, known));
        assert_eq!(server.post("/sdapi/v1/img2img", &job(&json!({}))).await.0, 404);
        assert_eq!(server.txt2img(&job(&json!({"steps": "many"}))).await.0, 422);
        server.handle.arm(Fault::OutOfMemoryAfterStep, 1);
        let response = server.send(Method::POST, "/sdapi/v1/txt2img", Some(&job(&json!({})))).await;
        assert_eq!(response.status(), 500);
        let text = response.text().await.expect("a body");
        assert_eq!(text.contains("OutOfMemoryError"), dialect == Dialect::A1111, "{text}");
        assert_eq!(server.get("/sdapi/v1/progress").await["state"]["job"], "", "nothing is left running");
        assert_eq!(server.txt2img(&job(&json!({}))).await.0, 200, "and the next job is well");
    }
}

#[tokio::test]
async fn a_checkpoint_is_overridden_and_an_unknown_one_is_passed_over_or_refused() {
    let over = |name: &str| {
        json!({"override_settings": {"sd_model_checkpoint": name},
            "override_settings_restore_afterwards": false})
    };
    for dialect in [Dialect::A1111, Dialect::Forge] {
        let server = start(dialect).await;
        assert_eq!(server.txt2img(&job(&over("Diffusers/tiny-sd-b"))).await.0, 200);
        assert_eq!(server.get("/sdapi/v1/options").await["sd_model_checkpoint"], "Diffusers/tiny-sd-b");
        let unknown = job(&over("none such"));
        let status = server.send(Method::POST, "/sdapi/v1/txt2img", Some(&unknown)).await.status();
        assert_eq!(status, if dialect == Dialect::A1111 { 200 } else { 500 });
        assert_eq!(server.handle.truth().model.as_deref(), Some("Diffusers/tiny-sd-b"));
    }
}
