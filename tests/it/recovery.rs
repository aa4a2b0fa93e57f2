//! A process killed in a render, started again on the same data.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use stepcast_tests::client::Http;
use stepcast_tests::nats::server_binary;
use stepcast_tests::process::{Process, binary};
use stepcast_tests::sim::Sim;
use stepcast_tests::wait::until;
use tempfile::TempDir;
use tokio::process::Command;

pub(crate) async fn up(folder: &TempDir, sim: &Sim, adopt: bool) -> (Process, Http) {
    let mut command = Command::new(binary("stepcast"));
    command.args(["up", "--json", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path());
    command.args(["--sdnext", &format!("gpu={}", sim.url())]).env("STEPCAST_NATS_SERVER", server_binary());
    command.env("STEPCAST_POSTS_PER_MINUTE", "0").env("STEPCAST_ADOPT", adopt.to_string());
    let mut up = Process::start("stepcast up", &mut command).unwrap();
    let ready =
        up.line(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["event"] == "ready"));
    let url = ready.await.unwrap()["url"].as_str().unwrap().to_owned();
    let http = Http::to(url.trim_start_matches("http://"));
    (up, http)
}

async fn killed_in_a_render(adopt: bool) -> (Sim, Value) {
    let sim = Sim::start(Duration::from_millis(400)).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (mut first, http) = up(&folder, &sim, adopt).await;
    let body = json!({"prompt": "survivor", "steps": 30, "width": 512, "height": 512, "max_attempts": 3});
    let id = http.submit(&body).await;
    until("the render has begun", async || sim.truth().running.filter(|running| running.step >= 2)).await;
    first.signal(Signal::KILL);
    first.end().await;
    let (_second, http) = up(&folder, &sim, adopt).await;
    let ended = http.ended(&id).await;
    for url in ended["images"].as_array().unwrap() {
        assert_eq!(http.get(url.as_str().unwrap()).await.status, 200);
    }
    (sim, ended)
}

#[tokio::test]
async fn an_orphaned_render_is_interrupted_and_its_job_done_again() {
    let (sim, ended) = killed_in_a_render(false).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("completed"), &json!(2)), "{ended}");
    let truth = sim.truth();
    let outcomes: Vec<&str> = truth.finished.iter().map(|render| render.outcome.as_str()).collect();
    assert_eq!(outcomes, ["interrupted", "done"], "never two renders beside each other");
}

#[tokio::test]
async fn an_orphaned_render_is_adopted_where_its_files_are_kept() {
    let (sim, ended) = killed_in_a_render(true).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("completed"), &json!(1)), "{ended}");
    assert_eq!(ended["outputs"].as_array().map(Vec::len), Some(1), "{ended}");
    let truth = sim.truth();
    assert_eq!((truth.renders_started, truth.interrupts_received), (1, 0), "nothing was rendered twice");
}
