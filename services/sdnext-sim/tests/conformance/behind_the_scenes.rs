//! What no client of a real server could do: faults on demand, the truth, the end; and the server's own edges.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use stepcast_sdnext_sim::{Config, Fault, Truth};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::recording::{Recording, assert_same_course, image_size, load};
use crate::server::{DEADLINE, Observed, Server, body, quick};

fn small() -> Value {
    json!({"prompt": "a boat", "steps": 6, "width": 256, "height": 192, "seed": 5})
}

async fn truth(server: &Server) -> Truth {
    serde_json::from_value(server.get("/sim/state").await).expect("the truth")
}

#[tokio::test]
async fn truth_names_the_running_job_and_the_finished_ones() {
    let server = Server::start(quick()).await;
    let mut seen = Vec::new();
    let request = small();
    let posting = server.txt2img(&request);
    tokio::pin!(posting);
    let answer = loop {
        tokio::select! {
            answer = &mut posting => break answer,
            truth = truth(&server) => seen.push(truth),
        }
    };
    assert_eq!(answer.0, 200);
    let running: Vec<_> = seen.iter().filter_map(|truth| truth.running.as_ref()).collect();
    assert!(running.iter().all(|running| running.prompt == "a boat" && running.seed == 5));
    assert!(running.is_sorted_by_key(|running| (running.pass, running.step)));
    assert!(running.is_sorted_by_key(|running| running.step_changed_at));
    assert!(running.iter().any(|running| running.stage == "Inference" && running.steps == 6));
    let last = truth(&server).await;
    assert!(last.running.is_none());
    assert_eq!((last.renders_started, last.renders_finished, last.posts_received), (1, 1, 1));
    let finished = &last.finished[0];
    assert_eq!((finished.prompt.as_str(), finished.seed, finished.images), ("a boat", 5, 1));
    assert_eq!((finished.outcome.as_str(), finished.steps_done), ("done", 6));
    assert!(finished.started_at < finished.ended_at);
}

async fn arm(server: &Server, fault: &str) {
    assert_eq!(server.post("/sim/faults", &json!({"fault": fault, "jobs": 1})).await.0, 204);
}

#[tokio::test]
async fn faults_spoil_the_next_job_only() {
    let server = Server::start(quick()).await;
    for (fault, status, images) in
        [("no_images", 200, 0), ("wrong_size", 200, 1), ("http_status:503", 503, 0), ("http_500", 500, 0)]
    {
        arm(&server, fault).await;
        let (answered, body) = server.txt2img(&small()).await;
        assert_eq!(answered, status, "{fault}");
        let sizes: Vec<_> = body["images"].as_array().into_iter().flatten().map(image_size).collect();
        assert_eq!(sizes.len(), images, "{fault}");
        assert!(sizes.iter().all(|size| *size == (128, 96)), "{fault}");
    }
    arm(&server, "truncated_image").await;
    let (_, body) = server.txt2img(&small()).await;
    let bytes = crate::recording::decode(body["images"][0].as_str().expect("a text"));
    assert!(!bytes.ends_with(b"\xff\xd9"), "the end of the picture is missing");
    let (status, body) = server.txt2img(&small()).await;
    assert_eq!((status, image_size(&body["images"][0])), (200, (256, 192)));
    assert_eq!(server.post("/sim/faults", &json!({"fault": "nonsense"})).await.0, 400);
}

#[tokio::test]
async fn job_that_hangs_ends_when_released_or_interrupted() {
    let server = Server::start(quick()).await;
    for (path, images) in [("/sim/release", (256, 192)), ("/sdapi/v1/interrupt", (64, 48))] {
        server.handle.arm(Fault::Hang, 1);
        let request = small();
        let posting = server.txt2img(&request);
        tokio::pin!(posting);
        let stuck = server.until("the third step", async || server.progress().await.step() == 3);
        tokio::select! { _ = &mut posting => panic!("it did not hang"), () = stuck => {} }
        let still = timeout(Duration::from_millis(200), &mut posting).await;
        assert!(still.is_err(), "it hangs");
        assert_eq!(server.progress().await.step(), 3);
        // Releasing wakes only who waits at that moment, so it is repeated.
        let nudge = server.until("an end", async || {
            server.post(path, &Value::Null).await;
            server.handle.truth().running.is_none()
        });
        let ((status, body), ()) = tokio::join!(posting, nudge);
        assert_eq!((status, image_size(&body["images"][0])), (200, images), "{path}");
    }
}

#[tokio::test]
async fn dropped_connection_does_not_stop_the_render() {
    let server = Server::start(quick()).await;
    server.handle.arm(Fault::DropConnection, 1);
    let sent = server.client.post(format!("{}/sdapi/v1/txt2img", server.url)).json(&small()).send().await;
    assert!(sent.is_err(), "closed without an answer");
    server.until("the end", async || server.handle.truth().renders_finished == 1).await;
    assert_eq!(server.handle.truth().finished[0].outcome, "done");
    assert_eq!(server.txt2img(&small()).await.0, 200);
}

#[tokio::test]
async fn killed_server_answers_nobody() {
    let mut server = Server::start(quick()).await;
    let request = json!({"prompt": "x", "steps": 100, "width": 512, "height": 512});
    let posting = server.client.post(format!("{}/sdapi/v1/txt2img", server.url)).json(&request).send();
    let started = async {
        server.until("a step", async || server.progress().await.step() > 0).await;
        server.handle.kill();
    };
    let (sent, ()) = tokio::join!(posting, started);
    assert!(sent.is_err(), "closed without an answer");
    let ended = timeout(DEADLINE, server.serving.join_next()).await.expect("it ends").expect("it ran");
    ended.expect("no panic").expect("no error");
    let refused = server.client.get(format!("{}/sdapi/v1/status", server.url)).send().await;
    assert!(refused.expect_err("nobody listens").is_connect());
}

#[tokio::test]
async fn shutdown_closes_connections_and_ends() {
    let mut server = Server::start(quick()).await;
    let request = json!({"prompt": "x", "steps": 1000, "width": 512, "height": 512});
    let posting = server.client.post(format!("{}/sdapi/v1/txt2img", server.url)).json(&request).send();
    let started = async {
        server.until("a step", async || server.progress().await.step() > 0).await;
        server.shutdown.cancel();
    };
    let (_, ()) = tokio::join!(posting, started);
    let ended = timeout(DEADLINE, server.serving.join_next()).await.expect("it ends").expect("it ran");
    ended.expect("no panic").expect("no error");
}

#[tokio::test]
async fn idle_connection_is_closed_and_a_busy_one_is_not() {
    let keep_alive = Duration::from_millis(150);
    let server = Server::start(Config { keep_alive, ..quick() }).await;
    let address = server.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let body = json!({"prompt": "x", "steps": 40, "width": 512, "height": 256}).to_string();
    let head = format!(
        "POST /sdapi/v1/txt2img HTTP/1.1\r\nhost: sim\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    timeout(DEADLINE, stream.read_to_end(&mut answer))
        .await
        .expect("closed in time")
        .expect("closed cleanly");
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "the job took longer than the keep-alive time");
}

#[tokio::test]
async fn too_many_waiting_posts_stall_every_endpoint() {
    let server = Server::start(Config { time_scale: 0.02, ..quick() }).await;
    server.handle.arm(Fault::Hang, 1);
    let mut posts = JoinSet::new();
    for _ in 0..45 {
        let request = server.client.post(format!("{}/sdapi/v1/txt2img", server.url));
        let request = request.json(&json!({"prompt": "tiny", "steps": 2, "width": 64, "height": 64}));
        posts.spawn(async move { request.send().await.expect("an answer").status() });
    }
    server.until("a full house", async || server.handle.truth().waiting == 39).await;
    let stalled = timeout(Duration::from_millis(300), server.get("/sdapi/v1/status")).await;
    assert!(stalled.is_err(), "no worker is left for a poll");
    server
        .until("an end", async || {
            server.handle.release();
            server.handle.truth().renders_finished > 0
        })
        .await;
    let answered = timeout(DEADLINE, server.get("/sdapi/v1/status")).await.expect("workers are back");
    assert!(answered["status"].is_string());
    while let Some(status) = posts.join_next().await {
        assert_eq!(status.expect("posted"), 200);
    }
}

#[tokio::test]
async fn starting_server_reads_idle_then_loads() {
    let recording: Value = load("startup");
    let start_up_time = Duration::from_secs(1);
    let server = Server::start(Config { start_up_time, time_scale: 1.0, ..quick() }).await;
    let mut observed = Observed::default();
    server
        .until("a model", async || {
            observed.samples.push(server.progress().await);
            server.get("/sdapi/v1/checkpoint").await["class"].is_string()
        })
        .await;
    observed.samples.push(server.progress().await);
    observed.history = server.history().await;
    let recorded: Vec<_> = serde_json::from_value(recording["progress"].clone()).expect("samples");
    assert_same_course(&recorded, &observed);
    assert_eq!(observed.samples[0].0, json!(0), "before the first stage the id is a number");
    assert_eq!(server.get("/sdapi/v1/status").await["total"], 2);
}

#[tokio::test]
async fn internal_progress_agrees_with_progress() {
    let recorded: Value = load("internal-progress");
    let server = Server::start(quick()).await;
    let request = json!({"prompt": "x", "steps": 20, "width": 512, "height": 512});
    let posting = server.txt2img(&request);
    tokio::pin!(posting);
    let empty = json!({});
    let (mut running, mut previews) = (Value::Null, 0);
    loop {
        tokio::select! {
            _ = &mut posting => break,
            (_, body) = server.post("/internal/progress", &empty) => {
                previews += i32::from(body["live_preview"].as_str().is_some_and(|uri| uri.starts_with("data:image/jpeg;base64,")));
                if body["step"] == 3 {
                    running = body;
                }
            }
        }
    }
    for (name, value) in recorded["running"].as_object().expect("an object") {
        assert!(name == "id_live_preview" || value == &running[name], "{name}: {running}");
    }
    assert!((1..=20).contains(&previews), "each preview is sent once, here {previews}");
}

#[tokio::test]
async fn answers_are_compressed_for_who_accepts_it() {
    let recording: Recording = load("txt2img-skip-image");
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = Server::start(quick()).await;
    let plain = reqwest::Client::builder().no_proxy().no_gzip().build().expect("a client");
    let url = format!("{}/sdapi/v1/samplers", server.url);
    let response = plain.get(&url).header("accept-encoding", "gzip").send().await.expect("an answer");
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(response.headers()["server"], "uvicorn");
    let response = plain.get(&url).send().await.expect("an answer");
    assert!(response.headers().get("content-encoding").is_none());
    let small = server.send(Method::GET, "/sdapi/v1/nope", None).await;
    assert_eq!(body(small).await, (404, json!({"detail": "Not Found"})));
    let observed = server.watch(&recording.exchanges).await;
    assert_same_course(recording.progress.as_deref().expect("polled"), &observed);
}
