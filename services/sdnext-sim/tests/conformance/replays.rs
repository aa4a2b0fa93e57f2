//! Scenarios in which everything goes well, or is interrupted.

use std::time::Duration;

use serde_json::{Value, json};
use stepcast_sdnext_sim::Config;

use crate::recording::{
    Recording, Sample, Seen, assert_same_answer, assert_same_course, image_size, load, stages,
};
use crate::server::{Observed, Server, quick};

fn compare(recording: &Recording, observed: &Observed) {
    if let Some(progress) = &recording.progress {
        assert_same_course(progress, observed);
        if observed.answers.iter().any(|(_, body)| !body["images"][0].is_null()) {
            let sampled =
                observed.samples.iter().any(|sample| sample.job() == "Inference" && sample.step() > 0);
            assert!(sampled, "no poll saw any step: {:?}", observed.samples);
        }
    }
    for (recorded, (status, body)) in recording.exchanges.iter().zip(&observed.answers) {
        assert_same_answer(recorded, *status, body);
    }
    assert_eq!(recording.exchanges.len(), observed.answers.len());
}

async fn replay(name: &str) {
    let recording: Recording = load(name);
    let server = Server::start(quick()).await;
    let observed = server.watch(&recording.exchanges).await;
    compare(&recording, &observed);
    // Every pass went through all its steps, whatever polls saw of it.
    let steps = |stage: &Seen| stage.samples.iter().map(|sample| sample.4).max().unwrap_or(0);
    let recorded: u32 =
        recording.progress.iter().flat_map(|samples| stages(samples)).map(|stage| steps(&stage)).sum();
    let done: u32 = server.handle.truth().finished.iter().map(|job| job.steps_done).sum();
    assert_eq!(recorded, done);
}

async fn replay_with(name: &str, when: impl Fn(&[Sample]) -> bool, path: &str) {
    let recording: Recording = load(name);
    let server = Server::start(quick()).await;
    let observed = server.watch_and(&recording.exchanges, when, path).await;
    compare(&recording, &observed);
}

/// Whether the newest poll shows `step` of sampling pass number `pass`.
fn at(pass: usize, step: u32) -> impl Fn(&[Sample]) -> bool {
    move |samples| {
        let passes = stages(samples).iter().filter(|stage| stage.job == "Inference").count();
        samples
            .last()
            .is_some_and(|sample| passes == pass && sample.job() == "Inference" && sample.step() >= step)
    }
}

macro_rules! replays {
    ($($test:ident: $name:literal;)*) => {
        $(#[tokio::test]
        async fn $test() {
            replay($name).await;
        })*
    };
}

replays! {
    plain_job: "txt2img";
    short_job: "txt2img-fast-poll";
    many_steps: "txt2img-120-steps";
    second_order_sampler: "sampler-heun";
    three_iterations_climb_three_times: "batch-n_iter3";
    batch_of_two_climbs_once: "batch-size2";
    two_iterations_of_two: "batch-n_iter2-size2";
    hires_climbs_twice: "hires";
    hires_with_an_image_upscaler: "hires-image-upscaler";
    field_switches_the_model: "model-switch-field";
    override_loads_twice: "model-switch-override";
    second_post_waits_for_the_first: "concurrent-two";
}

#[tokio::test]
async fn image_to_image() {
    let mut recording: Recording = load("img2img");
    let server = Server::start(quick()).await;
    let (_, made) = server.txt2img(&json!({"steps": 1, "width": 512, "height": 512})).await;
    recording.exchanges[0].request["init_images"] = json!([made["images"][0]]);
    let observed = server.watch(&recording.exchanges).await;
    compare(&recording, &observed);
}

#[tokio::test]
async fn interrupt_answers_with_a_preview() {
    replay_with("interrupt", at(1, 7), "/sdapi/v1/interrupt").await;
}

#[tokio::test]
async fn interrupt_needs_no_polls_for_its_preview() {
    replay_with("interrupt-no-poll", at(1, 7), "/sdapi/v1/interrupt").await;
}

#[tokio::test]
async fn interrupt_in_the_second_iteration_keeps_the_first() {
    replay_with("interrupt-n_iter3", at(2, 2), "/sdapi/v1/interrupt").await;
}

#[tokio::test]
async fn interrupt_while_decoding_answers_without_images() {
    let decoding = |samples: &[Sample]| samples.last().is_some_and(|sample| sample.job() == "VAE Decode");
    let recording: Recording = load("interrupt-vae-decode");
    let server = Server::start(Config { decode_time: Duration::from_secs(4), ..quick() }).await;
    let observed = server.watch_and(&recording.exchanges, decoding, "/sdapi/v1/interrupt").await;
    compare(&recording, &observed);
}

#[tokio::test]
async fn interrupt_while_idle_is_forgotten() {
    let recording: Recording = load("interrupt-while-idle");
    let server = Server::start(quick()).await;
    assert_eq!(server.post("/sdapi/v1/interrupt", &Value::Null).await.0, 204);
    assert_eq!(server.get("/sdapi/v1/status").await["status"], "interrupted");
    let observed = server.watch(&recording.exchanges).await;
    compare(&recording, &observed);
}

#[tokio::test]
async fn skip_leaves_its_progress_behind() {
    replay_with("skip", at(1, 8), "/sdapi/v1/skip").await;
}

#[tokio::test]
async fn skip_swallows_the_next_iteration_too() {
    replay_with("skip-n_iter3", at(1, 2), "/sdapi/v1/skip").await;
}

#[tokio::test]
async fn interrupt_hits_only_what_runs() {
    replay_with("concurrent-interrupt", at(1, 5), "/sdapi/v1/interrupt").await;
}

#[tokio::test]
async fn checkpoint_endpoint_kills_the_running_job() {
    let path = "/sdapi/v1/checkpoint?sd_model_checkpoint=Diffusers/tiny-sd-b";
    replay_with("model-switch-while-running", at(1, 7), path).await;
}

#[tokio::test]
async fn checkpoint_endpoint_loads_while_idle() {
    let recording: Recording = load("model-switch-endpoint");
    let server = Server::start(quick()).await;
    let path = "/sdapi/v1/checkpoint?sd_model_checkpoint=Diffusers/tiny-sd-b";
    let observed = server.watch_and(&[], |_| true, path).await;
    assert_same_course(recording.progress.as_deref().expect("polled"), &observed);
    assert_eq!(server.post(path, &Value::Null).await, (200, json!({"ok": true})));
}

#[tokio::test]
async fn unloaded_model_is_loaded_by_the_next_job() {
    let recording: Recording = load("unload-then-job");
    let server = Server::start(quick()).await;
    assert_eq!(server.post("/sdapi/v1/unload-checkpoint", &Value::Null).await.0, 204);
    assert_eq!(server.get("/sdapi/v1/checkpoint").await, json!({"type": null, "class": null}));
    let observed = server.watch(&recording.exchanges).await;
    compare(&recording, &observed);
}

#[tokio::test]
async fn saved_images_are_named_in_the_history() {
    let recording: Recording = load("save-images");
    let server = Server::start(quick()).await;
    let observed = server.watch(&recording.exchanges).await;
    compare(&recording, &observed);
    assert_same_history(&recording.history, &server.get("/sdapi/v1/history").await);
}

#[tokio::test]
async fn render_goes_on_without_its_client() {
    let recording: Recording = load("disconnect-save-images");
    let server = Server::start(quick()).await;
    let request = server.client.post(format!("{}/sdapi/v1/txt2img", server.url)).json(&recording.request);
    {
        let posting = request.send();
        tokio::pin!(posting);
        let started = server.until("the third step", async || server.progress().await.step() >= 3);
        tokio::select! {
            _ = &mut posting => panic!("the job is too short"),
            () = started => {}
        }
    }
    server.until("the end", async || server.handle.truth().renders_finished == 1).await;
    let history = server.get("/sdapi/v1/history").await;
    assert_same_history(&recording.history, &history);
    let saved = history.as_array().expect("a list").iter().find_map(|row| row["outputs"][0].as_str());
    let saved = saved.expect("a file");
    let path = format!("/sdapi/v1/file?file={saved}");
    let (status, body) = crate::server::body(server.send(reqwest::Method::GET, &path, None).await).await;
    assert_eq!(u64::from(status), recording.fetched[0]["status"].as_u64().expect("a status"));
    assert_eq!(body["detail"], format!("file not found: {saved}"));
    let file = server.send(reqwest::Method::GET, &format!("{path}.jpg"), None).await;
    assert_eq!(
        file.headers()["content-type"],
        recording.fetched[1]["content_type"].as_str().expect("a type")
    );
    assert_eq!(imagesize::blob_size(&file.bytes().await.expect("a file")).expect("an image").width, 512);
}

/// Compares the newest rows by job, operation and folder of the outputs.
fn assert_same_history(recorded: &[(String, String, Vec<String>)], history: &Value) {
    let folder = |path: &str| path.rsplit_once('/').map(|(folder, _)| folder.to_owned());
    let recorded: Vec<_> = recorded
        .iter()
        .map(|(job, op, outputs)| {
            (job.clone(), op.clone(), outputs.iter().filter_map(|path| folder(path)).collect::<Vec<_>>())
        })
        .collect();
    let rows = history.as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let observed: Vec<_> = rows[rows.len() - recorded.len()..]
        .iter()
        .map(|row| {
            assert!(row["timestamp"].is_f64());
            assert_eq!(row["duration"].is_number(), row["op"] == "end");
            let outputs = row["outputs"].as_array().expect("a list");
            let folders = outputs.iter().filter_map(|path| folder(path.as_str()?)).collect::<Vec<_>>();
            (text(&row["job"]), text(&row["op"]), folders)
        })
        .collect();
    assert_eq!(recorded, observed);
}

#[tokio::test]
async fn previews_come_in_the_recorded_sizes() {
    for (method, batch, size) in
        [("Approximate", 1, (128, 128)), ("Simple", 1, (64, 64)), ("Approximate", 2, (256, 128))]
    {
        let server = Server::start(Config { previews: method.to_owned(), ..quick() }).await;
        let request = json!({"prompt": "x", "steps": 20, "width": 512, "height": 512, "batch_size": batch});
        let posting = server.txt2img(&request);
        tokio::pin!(posting);
        let mut preview = Value::Null;
        loop {
            tokio::select! {
                _ = &mut posting => break,
                body = server.get("/sdapi/v1/progress") => {
                    let sample = Sample::new(&body);
                    if sample.step() == 0 {
                        assert_eq!(body["current_image"], Value::Null, "nothing to show before the first step");
                    } else {
                        preview = body["current_image"].clone();
                    }
                }
            }
        }
        assert_eq!(image_size(&preview), size, "{method}");
    }
}
