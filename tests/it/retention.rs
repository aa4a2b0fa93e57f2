//! What is kept, for how long, and what is removed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::json;
use stepcast_sdnext_sim::Fault;
use stepcast_tests::client::Http;
use stepcast_tests::database::{Database, number};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use stepcast_tests::wait::until;

#[tokio::test]
async fn an_ended_job_expires_with_all_that_belongs_to_it_on_sqlite() {
    an_ended_job_expires(&Database::Sqlite).await;
}

#[tokio::test]
async fn an_ended_job_expires_with_all_that_belongs_to_it_on_postgres() {
    if let Some(database) = Database::postgres().await {
        an_ended_job_expires(&database).await;
    }
}

fn sweeping(database: &Database, settings: &[(&'static str, &str)]) -> Setup {
    let mut api = vec![("STEPCAST_SWEEP_EVERY", "200ms".to_owned())];
    api.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
    Setup { api, ..database.setup() }
}

async fn an_ended_job_expires(database: &Database) {
    let sim = Sim::start(Duration::from_millis(200)).await.unwrap();
    let setup = sweeping(database, &[("STEPCAST_RETAIN", "4s"), ("STEPCAST_UNREFERENCED_AFTER", "3s")]);
    let stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    // Two replicas sweep at once; a file is for one api alone.
    let _other = match database {
        Database::Sqlite => None,
        Database::Postgres(_) => Some(stack.another_api().await.unwrap()),
    };
    let http = stack.http();

    sim.handle.arm(Fault::Http500, 1);
    let body = json!({"prompt": "old", "steps": 2, "width": 64, "height": 64, "max_attempts": 2,
        "init_images": [picture()], "denoising_strength": 0.5});
    let old = http.submit(&body).await;
    assert_eq!(http.ended(&old).await["status"], "completed");
    let path = format!("/generation/jobs/{old}");
    let image = format!("{path}/images/0");
    assert_eq!(http.get(&image).await.status, 200);
    let running = http.submit(&json!({"prompt": "still runs", "steps": 500})).await;
    until("the second one renders", async || sim.truth().running).await;

    until("the job has expired", async || (http.get(&path).await.status == 410).then_some(())).await;
    let gone = http.get(&path).await;
    assert_eq!(gone.json["type"], "/problems/job-expired", "{}", gone.json);
    assert_eq!(http.get(&image).await.status, 410);
    let unknown = "/generation/jobs/0190a5c1-0000-7000-8000-000000000000";
    assert_eq!(http.get(unknown).await.status, 404, "what never was is not expired");
    until("its folder is gone", async || (!stack.images().join(&old).exists()).then_some(())).await;
    until("its input image is gone", async || files(&stack.images().join("inputs")).is_empty().then_some(()))
        .await;
    for (table, left) in [("jobs", 1), ("attempts", 0), ("inputs", 0), ("outbox", 0)] {
        let count = format!("SELECT CAST(COUNT(*) AS BIGINT) FROM {table}");
        assert_eq!(number(&stack.database_url(), &count).await, left, "{table}");
    }
    assert_eq!(http.job(&running).await["status"], "running", "what has not ended is never too old");
    let again = http.submit(&body).await;
    let cancelled = http.post(&format!("/generation/jobs/{running}/cancel"), &json!(null)).await;
    assert_eq!(cancelled.status, 200, "{}", cancelled.json);
    assert_eq!(http.ended(&again).await["status"], "completed", "the same image can be sent again");
}

#[tokio::test]
async fn objects_that_nobody_refers_to_are_removed_once_they_are_old() {
    let sim = Sim::start(Duration::from_millis(200)).await.unwrap();
    let stack = Stack::start_on(sweeping(&Database::Sqlite, &[]), &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let done = http.submit(&json!({"prompt": "done", "steps": 2, "width": 64, "height": 64})).await;
    let key = http.ended(&done).await["outputs"][0]["key"].as_str().unwrap().to_owned();
    let waiting = hold(&http, &sim).await;
    let input = upload(&http).await;

    let images = stack.images();
    let token = "0190a5c1-0000-7000-8000-00000000000a";
    let nobody = "0190a5c1-0000-7000-8000-00000000000b";
    for name in [&key, &format!("inputs/{input}")] {
        make_old(&images.join(name));
    }
    let stay = [
        format!("{waiting}/1-{token}/0.png"),
        "holiday.jpg".to_owned(),
        format!("{nobody}/notes.txt"),
        "inputs/readme.txt".to_owned(),
    ]
    .map(|name| put(&images.join(name)));
    let young = put(&images.join(format!("{nobody}/1-{token}/1.png")));
    for path in &stay {
        make_old(path);
    }
    let go = [
        format!("{done}/1-{token}/0.png"),
        format!("{nobody}/1-{token}/0.png"),
        format!("inputs/{}", "ab".repeat(32)),
    ]
    .map(|name| put(&images.join(name)));
    for path in &go {
        make_old(path);
    }

    until("what nobody refers to is gone", async || go.iter().all(|path| !path.exists()).then_some(())).await;
    // Input images are looked at last: once this one is gone, a whole sweep has seen everything else.
    let last = put(&images.join("inputs").join("cd".repeat(32)));
    make_old(&last);
    until("another sweep is over", async || (!last.exists()).then_some(())).await;
    for path in stay.iter().chain([&young, &images.join(&key), &images.join("inputs").join(input)]) {
        assert!(path.exists(), "{} is not to be removed", path.display());
    }
    assert_eq!(http.get(&format!("/generation/jobs/{done}/images/0")).await.status, 200);
}

/// Keeps the server busy, and returns a job that runs for long.
async fn hold(http: &Http, sim: &Sim) -> String {
    let running = http.submit(&json!({"prompt": "runs", "steps": 500})).await;
    until("it renders", async || sim.truth().running).await;
    running
}

async fn upload(http: &Http) -> String {
    let bytes = STANDARD.decode(picture()).unwrap();
    let answer =
        http.send(Method::POST, "/generation/inputs", bytes.into(), &[("content-type", "image/png")]).await;
    assert_eq!(answer.status, 201, "{}", answer.json);
    answer.json["input_id"].as_str().unwrap().to_owned()
}

fn picture() -> String {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&[70; 64 * 64 * 3])).unwrap();
    STANDARD.encode(bytes)
}

/// Writes a file.
fn put(path: &Path) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "x").unwrap();
    path.to_owned()
}

/// Makes a file two hours old.
fn make_old(path: &Path) {
    let then = SystemTime::now() - Duration::from_hours(2);
    std::fs::File::options().write(true).open(path).and_then(|file| file.set_modified(then)).unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .map_or_else(|_| Vec::new(), |entries| entries.flatten().map(|e| e.path()).collect())
}
