//! The commands, against a running `up`.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use crate::harness::{DEADLINE, Up, output, stepcast, text};

#[tokio::test]
async fn exit_codes_tell_how_a_watched_job_ended() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(data.path(), &["--demo"]).await;
    let images = data.path().join("saved");

    let done = up
        .client(&[
            "submit",
            "a fox",
            "--steps",
            "4",
            "--backend",
            "demo-fast",
            "--watch",
            "--out",
            images.to_str().unwrap(),
        ])
        .await;
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    let lines = text(&done.stdout);
    assert!(lines.contains("started on demo-fast") && lines.contains("completed after"), "{lines}");
    let saved: Vec<_> = std::fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(saved.len(), 1);
    assert!(lines.contains(saved[0].to_str().unwrap()), "{lines}");

    let failed = up.client(&["submit", "x", "--sampler", "no such sampler", "--watch"]).await;
    assert_eq!(failed.status.code(), Some(3), "{failed:?}");

    let job = up.submit(&["slow", "--steps", "200", "--backend", "demo-slow"]).await;
    let cancelled = up.client(&["cancel", &job]).await;
    assert_eq!(cancelled.status.code(), Some(0), "{cancelled:?}");
    let watched = up.client(&["watch", &job]).await;
    assert_eq!(watched.status.code(), Some(4), "{watched:?}");
    assert_eq!(up.client(&["cancel", &job]).await.status.code(), Some(1), "it has ended already");
    up.stop().await;
}

#[tokio::test]
async fn json_is_one_value_a_line() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(data.path(), &["--demo"]).await;
    let watched =
        up.client(&["--json", "submit", "a fox", "--steps", "4", "--watch", "--label", "test"]).await;
    let lines: Vec<Value> =
        text(&watched.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["status"], "pending");
    assert_eq!(lines.last().unwrap()["type"], "generation_complete");
    let progress: Vec<f64> = lines.iter().filter_map(|line| line["data"]["progress"].as_f64()).collect();
    assert!(progress.is_sorted(), "{progress:?}");

    let jobs: Value =
        serde_json::from_slice(&up.client(&["--json", "jobs", "--label", "test"]).await.stdout).unwrap();
    assert_eq!(jobs["jobs"][0]["job_id"], lines[0]["job_id"]);
    let backends: Value = serde_json::from_slice(&up.client(&["--json", "backends"]).await.stdout).unwrap();
    assert_eq!(backends["backends"].as_array().unwrap().len(), 2);

    let refused = up.client(&["--json", "submit", "x", "--steps", "0"]).await;
    assert_eq!(refused.status.code(), Some(1));
    let problem: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert_eq!(problem["errors"][0]["pointer"], "/steps");
    up.stop().await;
}

#[tokio::test]
async fn a_refusal_names_the_fields_and_an_unknown_job_is_not_waited_for() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::start(data.path(), &["--demo"]).await;
    let refused = up.client(&["submit", "x", "--steps", "0", "--width", "1"]).await;
    let words = text(&refused.stderr);
    assert!(words.contains("\n  steps: ") && words.contains("\n  width: "), "{words}");
    let unknown = up.client(&["watch", "01890000-0000-7000-8000-000000000000"]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("There is no job"), "{unknown:?}");
    up.stop().await;
}

#[tokio::test]
async fn nobody_there_and_nonsense_have_codes_of_their_own() {
    let unreachable = output(stepcast().args(["jobs", "--server", "http://127.0.0.1:1"])).await;
    assert_eq!(unreachable.status.code(), Some(5));
    assert!(text(&unreachable.stderr).contains("stepcast up"), "{unreachable:?}");
    let nonsense = output(stepcast().args(["watch"])).await;
    assert_eq!(nonsense.status.code(), Some(2));
}

#[tokio::test]
async fn a_watch_outlives_a_restart_of_the_server() {
    let data = tempfile::tempdir().unwrap();
    // Nobody renders, so that the job waits for as long as it takes.
    let nobody = ["--sdnext", "gpu=http://127.0.0.1:1"];
    let up = Up::start(data.path(), &nobody).await;
    let address = up.ready["listen"].as_str().unwrap().to_owned();
    let job = up.submit(&["patience"]).await;
    let mut watching = stepcast()
        .args(["watch", &job, "--server", up.url()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut next = async || timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap_or_default();
    assert!(next().await.contains("waiting"));
    up.stop().await;

    let up = Up::start_at(&address, data.path(), &nobody).await;
    assert!(up.client(&["cancel", &job]).await.status.success());
    assert!(next().await.contains("cancelled"));
    let status = timeout(DEADLINE, watching.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(4));
    up.stop().await;
}
