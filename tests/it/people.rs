//! What a person meets: one command, the page in a browser, and the first system's Python client.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use stepcast_tests::client::Http;
use stepcast_tests::nats::server_binary;
use stepcast_tests::process::{Process, binary};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

/// A browser needs its time on a machine that builds beside it.
const LONGEST: Duration = Duration::from_mins(4);

struct Demo {
    up: Process,
    url: String,
    _folder: TempDir,
}

impl Demo {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(binary("stepcast"));
        command.args(["up", "--demo", "--json", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.path());
        command.env("STEPCAST_NATS_SERVER", server_binary());
        let mut up = Process::start("stepcast up", &mut command).unwrap();
        let ready = up
            .line(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["event"] == "ready"))
            .await
            .unwrap();
        Self { up, url: ready["url"].as_str().unwrap().to_owned(), _folder: folder }
    }

    fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }
}

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a Python program of the tests to its end; returns what it printed.
async fn python(arguments: &[&str]) -> String {
    let interpreter = workspace().join(".venv/bin/python");
    assert!(interpreter.exists(), "`make test` sets up the Python clients first");
    let output =
        Command::new(interpreter).args(arguments).current_dir(workspace()).kill_on_drop(true).output();
    let output = timeout(LONGEST, output).await.expect("it ends in time").unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}:\n{text}");
    text
}

#[tokio::test]
async fn the_page_works_in_a_browser() {
    let demo = Demo::start().await;
    let text = python(&["tests/browser/test_page.py", "--url", &demo.url]).await;
    assert!(text.contains("0 failed"), "{text}");
}

#[tokio::test]
async fn the_first_systems_python_client_watches_a_job_to_its_end() {
    let demo = Demo::start().await;
    let socket = format!("ws://{}/ws/progress", demo.address());
    let arguments =
        ["tests/clients/test_websocket.py", &socket, "--submit", "a lighthouse", "--until-complete", "1"];
    let text = python(&arguments).await;
    assert!(text.contains("completed in"), "{text}");
}

#[tokio::test]
async fn the_demo_serves_everything_on_one_origin_and_stops_on_request() {
    let mut demo = Demo::start().await;
    let http = Http::to(demo.address());
    for path in ["/", "/docs/", "/openapi.json", "/health/ready", "/metrics", "/generation/backends"] {
        assert_eq!(http.get(path).await.status, 200, "{path}");
    }
    assert_eq!(http.get("/nothing").await.headers["content-type"], "application/problem+json");
    let job = http.ended(&http.submit(&json!({"prompt": "a beautiful landscape", "steps": 10})).await).await;
    assert_eq!(job["status"], "completed", "{job}");
    demo.up.signal(rustix::process::Signal::TERM);
    assert!(demo.up.end().await.success());
}
