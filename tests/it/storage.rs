//! A disk that is full, an image folder that is gone: a clear answer, nothing half stored, recovery without a restart.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::json;
use stepcast_sdnext_sim::Fault;
use stepcast_tests::check;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use stepcast_tests::wait::until;

use crate::outage::{
    SUBMIT, assert_image, assert_try_later, from_picture, keyed, let_go, rows, says, small, upload,
};

const NOTHING: [PathBuf; 0] = [];

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_full_disk_refuses_submits_and_loses_none_that_were_accepted() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let setup = Setup { limitable: true, ..Setup::default() };
    let mut stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut accepted = vec![http.submit(&small("before")).await];
    assert_eq!(http.ended(&accepted[0]).await["status"], "completed");
    let known = keyed(&http, "known", &small("known")).await;
    accepted.push(known.json["job_id"].as_str().unwrap().to_owned());
    sim.handle.arm(Fault::Hang, 1);
    let rendering = http.submit(&small("while the disk is full")).await;
    until("it renders", async || sim.truth().running).await;
    accepted.push(rendering.clone());
    let before = [rows(&stack.database_url(), "jobs").await, rows(&stack.database_url(), "inputs").await];

    stack.api.limit_files(Some(0));
    let body = small("refused at first");
    for answer in &join_all((0..6).map(|_| keyed(&http, "refused", &body))).await {
        assert_try_later(answer, "database-unavailable");
    }
    assert_try_later(&http.post(SUBMIT, &from_picture("refused")).await, "storage-unavailable");
    assert_try_later(&upload(&http).await, "storage-unavailable");
    let cancel = http.post(&format!("/generation/jobs/{rendering}/cancel"), &json!(null)).await;
    assert_try_later(&cancel, "database-unavailable");
    assert_eq!(
        [rows(&stack.database_url(), "jobs").await, rows(&stack.database_url(), "inputs").await],
        before
    );
    assert_eq!(files(&stack.images().join("inputs")), NOTHING, "no part of an upload is left");
    let_go(&sim).await;
    says(&mut stack.api, "events not applied").await;
    assert_eq!(http.get("/generation/jobs").await.status, 200, "what is there can still be read");
    assert!(stack.api.is_running());

    stack.api.limit_files(None);
    until("submits are taken again", async || {
        let answer = keyed(&http, "refused", &body).await;
        (answer.status == 202).then(|| accepted.push(answer.json["job_id"].as_str().unwrap().to_owned()))
    })
    .await;
    // What is committed after so many failures must be committed for good.
    assert_eq!(keyed(&http, "known", &small("known")).await.json["job_id"], accepted[1]);
    for n in 0..3 {
        accepted.push(http.submit(&from_picture(&format!("after {n}"))).await);
    }
    assert_eq!(
        rows(&stack.database_url(), "jobs").await,
        i64::try_from(accepted.len()).unwrap(),
        "others can see them"
    );
    stack.api.signal(Signal::KILL);
    stack.api.end().await;
    stack.restart_api().await.unwrap();
    let http = stack.http();
    for id in &accepted {
        assert_image(&http, &http.ended(id).await).await;
    }
    assert_eq!(rows(&stack.database_url(), "jobs").await, i64::try_from(accepted.len()).unwrap());
    assert_eq!(sim.truth().renders_started, accepted.len() as u64, "each was rendered once");
}

#[tokio::test]
async fn an_image_that_finds_no_room_is_kept_until_there_is_some() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let setup = Setup { limitable: true, ..Setup::default() };
    let mut stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;

    // Less than an image: its beginning finds room.
    stack.poller.limit_files(Some(100));
    let id = http.submit(&small("no room")).await;
    let waiting = http.submit(&small("waits")).await;
    says(&mut stack.poller, "images not stored yet").await;
    assert_eq!(files(&stack.images()), NOTHING, "no part of an image is left");
    assert_eq!(http.job(&id).await["status"], "running");
    assert_eq!(http.get(&format!("/generation/jobs/{id}/images/0")).await.status, 404);

    stack.poller.limit_files(None);
    for id in [&id, &waiting] {
        watcher.ended(id).await;
        check::messages(id, &watcher.about(id));
        let job = http.ended(id).await;
        assert_image(&http, &job).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    assert_eq!(sim.truth().renders_started, 2, "what was rendered is not rendered again");
}

#[tokio::test]
async fn an_image_that_finds_no_room_for_too_long_is_rendered_again() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let poller = vec![("STEPCAST_STORE_PATIENCE", "1s".to_owned())];
    let setup = Setup { limitable: true, poller, ..Setup::default() };
    let stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    stack.poller.limit_files(Some(100));
    let id = http.submit(&small("no room")).await;
    let retried = watcher.wait("it is tried again", |message| message["type"] == "generation_retrying").await;
    stack.poller.limit_files(None);
    let error = &retried["data"]["error"];
    assert_eq!(error["code"], "internal", "{retried}");
    assert!(error["message"].as_str().unwrap().contains("could not be stored"), "{retried}");
    let job = http.ended(&id).await;
    assert_image(&http, &job).await;
    assert_eq!(job["attempt"], 2, "{job}");
    assert_eq!(files(&stack.images()).len(), 1, "nothing of the first attempt is left");
}

#[tokio::test]
async fn a_job_whose_image_finds_no_room_can_be_cancelled() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let setup = Setup { limitable: true, ..Setup::default() };
    let mut stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    stack.poller.limit_files(Some(100));
    let id = http.submit(&small("no room")).await;
    says(&mut stack.poller, "images not stored yet").await;
    let answer = http.post(&format!("/generation/jobs/{id}/cancel"), &json!(null)).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    let job = http.ended(&id).await;
    assert_eq!((&job["status"], &job["error"]["code"]), (&json!("cancelled"), &json!("cancelled")), "{job}");
    assert_eq!(files(&stack.images()), NOTHING);
}

#[tokio::test]
async fn an_image_folder_that_is_gone_is_waited_for() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let before = http.submit(&from_picture("before")).await;
    assert_image(&http, &http.ended(&before).await).await;
    let stored = files(&stack.images());

    let (folder, away) = (stack.images(), stack.folder.path().join("away"));
    std::fs::rename(&folder, &away).unwrap();
    std::fs::write(&folder, "not a folder").unwrap();
    assert_try_later(&upload(&http).await, "storage-unavailable");
    assert_try_later(&http.post(SUBMIT, &from_picture("refused")).await, "storage-unavailable");
    let image = http.get(&format!("/generation/jobs/{before}/images/0")).await;
    assert_try_later(&image, "storage-unavailable");
    let id = http.submit(&small("meanwhile")).await;
    says(&mut stack.poller, "images not stored yet").await;
    assert!(stack.api.is_running() && stack.poller.is_running());
    assert_eq!(
        files(&away),
        stored.iter().map(|path| away.join(path.strip_prefix(&folder).unwrap())).collect::<Vec<_>>()
    );

    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    let job = http.ended(&id).await;
    assert_image(&http, &job).await;
    assert_eq!(job["attempt"], 1, "{job}");
    assert_image(&http, &http.ended(&before).await).await;
    assert_eq!(upload(&http).await.status, 201);
    assert_eq!(sim.truth().renders_started, 2);
}

#[tokio::test]
async fn a_job_whose_input_lies_on_a_volume_that_is_away_waits_for_it() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let input = upload(&http).await.json["input_id"].as_str().unwrap().to_owned();
    let (folder, away) = (stack.images(), stack.folder.path().join("away"));
    std::fs::rename(&folder, &away).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let mut body = from_picture("from a volume");
    body["init_images"] = json!([format!("input:{input}")]);
    let id = http.submit(&body).await;
    says(&mut stack.poller, "is its volume mounted?").await;
    assert_eq!(http.job(&id).await["status"], "pending", "it is not the job's fault");

    std::fs::remove_dir(&folder).unwrap();
    std::fs::rename(&away, &folder).unwrap();
    let job = http.ended(&id).await;
    assert_image(&http, &job).await;
    assert_eq!(job["attempt"], 1, "{job}");
}
