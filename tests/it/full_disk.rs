//! Everything on one machine, on a disk that is really full: rows, images and the broker's streams at once.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use stepcast_tests::check;
use stepcast_tests::client::Http;
use stepcast_tests::nats::server_binary;
use stepcast_tests::process::{Process, binary};
use stepcast_tests::wait::{until, until_after};
use tokio::process::Command;

use crate::outage::{ANSWERED_WITHIN, SUBMIT, assert_image, assert_try_later, says, small, upload};

/// Enough for what the streams may grow to, and little enough to be filled.
const DISK: &str = "size=200m";

/// Starts everything on a small disk of its own, which only it and its children see.
///
/// `None`, with a word about it, where no disk may be mounted.
fn start(folder: &Path) -> Option<Process> {
    let root = rustix::process::geteuid().is_root();
    let apart = if root { "-m" } else { "-rm" };
    let allowed = std::process::Command::new("unshare")
        .args([apart, "mount", "-t", "tmpfs", "tmpfs"])
        .arg(folder)
        .output()
        .is_ok_and(|tried| tried.status.success());
    if !allowed {
        eprintln!("SKIPPED: no disk can be mounted here, so none was filled");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args([
        apart,
        "sh",
        "-c",
        r#"mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@""#,
        "sh",
        DISK,
    ]);
    command.arg(folder).arg(binary("stepcast"));
    command
        .args(["up", "--demo", "--json", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.join("data"));
    command.env("STEPCAST_NATS_SERVER", server_binary());
    Some(Process::start("stepcast up", &mut command).unwrap())
}

/// Writes until nothing more can be written.
fn fill(file: &Path) {
    let mut file = std::fs::File::create(file).unwrap();
    // Small pieces, so that no corner stays free.
    while file.write_all(&[0; 4096]).is_ok() {}
}

#[tokio::test]
async fn a_full_disk_stops_everything_on_one_machine_and_harms_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut up) = start(folder.path()) else { return };
    let ready = up
        .line(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["event"] == "ready"))
        .await
        .unwrap();
    let http = Http::to(ready["url"].as_str().unwrap().trim_start_matches("http://"));
    // The disk as it is seen by what has it.
    let disk = PathBuf::from(format!("/proc/{}/root{}", up.id(), folder.path().display()));
    let before = http.submit(&small("before")).await;
    assert_image(&http, &http.ended(&before).await).await;
    let long = json!({"prompt": "meanwhile", "steps": 120, "width": 512, "height": 512});
    let rendering = http.submit(&long).await;
    let mut late = long.clone();
    late["steps"] = json!(500);
    late["deadline_seconds"] = json!(15);
    let late = http.submit(&late).await;
    for id in [&rendering, &late] {
        until("it renders", async || (http.job(id).await["status"] == "running").then_some(())).await;
    }

    fill(&disk.join("fill"));
    assert_try_later(&http.post(SUBMIT, &small("refused")).await, "database-unavailable");
    assert_try_later(&upload(&http).await, "storage-unavailable");
    says(&mut up, "images not stored yet").await;
    // What ends now is to be recorded, and the stream of events takes nothing more from then on.
    let log = disk.join("data/nats/nats-server.log");
    until("the broker has found no room", async || {
        let log = std::fs::read_to_string(&log).ok()?;
        log.lines().any(|line| line.contains("STEPCAST_EVENTS") && line.contains("no space")).then_some(())
    })
    .await;

    std::fs::remove_file(disk.join("fill")).unwrap();
    let after = until_after(4 * ANSWERED_WITHIN, "submits are taken and rendered again", async || {
        let answer = http.post(SUBMIT, &small("after")).await;
        (answer.status == 202).then(|| answer.json["job_id"].as_str().unwrap().to_owned())
    })
    .await;
    for (id, side) in [(&rendering, 512), (&after, 64)] {
        let job = until_after(4 * ANSWERED_WITHIN, "all jobs have ended", async || {
            let job = http.job(id).await;
            (job["status"] == "completed").then_some(job)
        })
        .await;
        let image = http.get(job["images"][0].as_str().unwrap()).await;
        assert_eq!(check::decoded_size(&image.bytes), (side, side));
        assert_eq!(job["attempt"], 1, "{job}");
    }
    let late = http.ended(&late).await;
    assert_eq!(late["error"]["code"], "deadline", "{late}");
    let all = http.get("/generation/jobs").await.json["jobs"].as_array().unwrap().len();
    assert_eq!(all, 4, "what was refused left nothing");
    assert!(up.is_running());
}
