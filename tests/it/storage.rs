//! A disk that is full, an image folder that is gone, a database that is locked or away: a clear answer, nothing half
//! stored, and recovery without a restart.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _};
use stepcast_sdnext_sim::Config;
use stepcast_tests::check;
use stepcast_tests::client::{Answer, Http};
use stepcast_tests::database::number;
use stepcast_tests::postgres::Postgres;
use stepcast_tests::proxy::{Mode, Proxy};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use stepcast_tests::wait::{until, within};
use tokio::sync::watch;

const SUBMIT: &str = "/generation/queue-generation";

const NOTHING: [PathBuf; 0] = [];

/// Bound on an answer while the database does not answer: a wait for a connection, and one for the lock, twice over.
const ANSWERED_WITHIN: Duration = Duration::from_secs(25);

/// Longer than SQLite waits for a lock.
const LOCKED_FOR: Duration = Duration::from_secs(8);

fn small(prompt: &str) -> Value {
    json!({"prompt": prompt, "steps": 2, "width": 64, "height": 64})
}

fn with_priority(body: &Value, priority: &str) -> Value {
    let mut body = body.clone();
    body["priority"] = json!(priority);
    body
}

fn picture() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&[40; 64 * 64 * 3])).unwrap();
    bytes
}

fn from_picture(prompt: &str) -> Value {
    let mut body = small(prompt);
    body["init_images"] = json!([STANDARD.encode(picture())]);
    body["denoising_strength"] = json!(0.5);
    body
}

async fn keyed(http: &Http, key: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    http.send(Method::POST, SUBMIT, body.to_string().into(), &headers).await
}

async fn upload(http: &Http) -> Answer {
    http.send(Method::POST, "/generation/inputs", picture().into(), &[("content-type", "image/png")]).await
}

/// The answer says that it is not the client's fault, of what it is, and when to come back.
fn assert_try_later(answer: &Answer, kind: &str) {
    assert_eq!(answer.status, 503, "{}", answer.json);
    assert_eq!(answer.json["type"], format!("/problems/{kind}"), "{}", answer.json);
    let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

async fn rows(stack: &Stack, table: &str) -> i64 {
    rows_in(&stack.database_url(), table).await
}

async fn rows_in(database_url: &str, table: &str) -> i64 {
    number(database_url, &format!("SELECT CAST(COUNT(*) AS BIGINT) FROM {table}")).await
}

async fn assert_image(http: &Http, job: &Value) {
    assert_eq!(job["status"], "completed", "{job}");
    let image = http.get(job["images"][0].as_str().unwrap()).await;
    assert_eq!(check::decoded_size(&image.bytes), (64, 64));
}

/// Lets a hanging render go on to its end; it may be on its way to where it hangs.
async fn let_go(sim: &Sim) {
    until("the render ends", async || {
        sim.handle.release();
        sim.truth().running.is_none().then_some(())
    })
    .await;
}

/// A word of the process's log.
async fn says(process: &mut stepcast_tests::process::Process, word: &str) {
    process.line(|line| line.contains(word).then_some(())).await.unwrap();
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
    sim.handle.arm(stepcast_sdnext_sim::Fault::Hang, 1);
    let rendering = http.submit(&small("while the disk is full")).await;
    until("it renders", async || sim.truth().running).await;
    accepted.push(rendering.clone());
    let before = [rows(&stack, "jobs").await, rows(&stack, "inputs").await];

    stack.api.limit_files(Some(0));
    let body = small("refused at first");
    for answer in &join_all((0..6).map(|_| keyed(&http, "refused", &body))).await {
        assert_try_later(answer, "database-unavailable");
    }
    assert_try_later(&http.post(SUBMIT, &from_picture("refused")).await, "storage-unavailable");
    assert_try_later(&upload(&http).await, "storage-unavailable");
    let cancel = http.post(&format!("/generation/jobs/{rendering}/cancel"), &json!(null)).await;
    assert_try_later(&cancel, "database-unavailable");
    assert_eq!([rows(&stack, "jobs").await, rows(&stack, "inputs").await], before);
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
    // A replayed key rolls its transaction back; what is committed after it must be committed for good.
    assert_eq!(keyed(&http, "known", &small("known")).await.json["job_id"], accepted[1]);
    for n in 0..3 {
        accepted.push(http.submit(&from_picture(&format!("after {n}"))).await);
    }
    assert_eq!(rows(&stack, "jobs").await, i64::try_from(accepted.len()).unwrap(), "others can see them");
    stack.api.signal(Signal::KILL);
    stack.api.end().await;
    stack.restart_api().await.unwrap();
    let http = stack.http();
    for id in &accepted {
        assert_image(&http, &http.ended(id).await).await;
    }
    assert_eq!(rows(&stack, "jobs").await, i64::try_from(accepted.len()).unwrap());
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
    let config = Config { step_time: Duration::from_millis(20), rate_limit: 0, ..Config::default() };
    let sim = Sim::with(config).await.unwrap();
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

#[tokio::test]
async fn a_locked_database_is_told_within_a_bound_and_goes_on_once_it_is_free() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    sim.handle.arm(stepcast_sdnext_sim::Fault::Hang, 1);
    let rendering = http.submit(&small("while it is locked")).await;
    until("it renders", async || sim.truth().running).await;

    sqlx::any::install_default_drivers();
    let mut lock = sqlx::AnyConnection::connect(&stack.database_url()).await.unwrap();
    lock.execute("BEGIN EXCLUSIVE").await.unwrap();
    let locked = Instant::now();
    let_go(&sim).await;
    let answers = join_all((0..5).map(async |n| {
        let asked = Instant::now();
        let answer = http.post(SUBMIT, &small(&format!("refused {n}"))).await;
        (answer, asked.elapsed())
    }));
    let reading = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        http.get("/generation/jobs").await
    };
    let (answers, read) = tokio::join!(answers, reading);
    assert_eq!(read.status, 200, "what is there can still be read");
    for (answer, took) in &answers {
        assert_try_later(answer, "database-unavailable");
        assert!(*took < ANSWERED_WITHIN, "{took:?}");
    }
    tokio::time::sleep(LOCKED_FOR.saturating_sub(locked.elapsed())).await;
    lock.execute("COMMIT").await.unwrap();

    let after = until("submits are taken again", async || {
        let answer = http.post(SUBMIT, &small("after")).await;
        (answer.status == 202).then(|| answer.json["job_id"].as_str().unwrap().to_owned())
    })
    .await;
    for id in [&rendering, &after] {
        let job = http.ended(id).await;
        assert_image(&http, &job).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    assert_eq!((rows(&stack, "jobs").await, sim.truth().renders_started), (2, 2));
}

#[tokio::test]
async fn a_postgres_that_is_stopped_and_started_again_loses_and_doubles_nothing() {
    let Some(mut postgres) = Postgres::start().await.unwrap() else { return };
    let sims = [
        Sim::start(Duration::from_millis(100)).await.unwrap(),
        Sim::start(Duration::from_millis(100)).await.unwrap(),
    ];
    let setup = Setup { database_url: Some(postgres.url()), ..Setup::default() };
    let backends = [("one", sims[0].url()), ("two", sims[1].url())];
    let mut stack = Stack::start_on(setup, &backends).await.unwrap();
    let (_other, other_http) = stack.another_api().await.unwrap();
    let apis = [stack.http(), other_http];
    let mut accepted = Vec::new();
    for n in 0..8 {
        accepted.push(apis[n % 2].submit(&small(&format!("before {n}"))).await);
    }
    until("both render", async || sims.iter().all(|sim| sim.truth().running.is_some()).then_some(())).await;

    postgres.stop().await;
    for http in &apis {
        let asked = Instant::now();
        assert_try_later(&http.post(SUBMIT, &small("refused")).await, "database-unavailable");
        assert_try_later(&http.get("/generation/jobs").await, "database-unavailable");
        assert!(asked.elapsed() < 2 * ANSWERED_WITHIN);
        until("it is not ready", async || (http.get("/health/ready").await.status == 503).then_some(()))
            .await;
        assert_eq!(http.get("/health/live").await.status, 200, "a restart of ours would not help");
    }
    postgres.start_again().await.unwrap();

    for (n, http) in apis.iter().enumerate() {
        accepted.push(
            until("submits are taken again", async || {
                let answer = http.post(SUBMIT, &small(&format!("after {n}"))).await;
                (answer.status == 202).then(|| answer.json["job_id"].as_str().unwrap().to_owned())
            })
            .await,
        );
        until("it is ready", async || (http.get("/health/ready").await.status == 200).then_some(())).await;
    }
    for id in &accepted {
        let job = apis[0].ended(id).await;
        assert_image(&apis[1], &job).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    assert_eq!(rows(&stack, "jobs").await, 10);
    assert_eq!(sims.iter().map(|sim| sim.truth().renders_started).sum::<u64>(), 10, "each was rendered once");
    until("the outbox is empty", async || (rows(&stack, "outbox").await == 0).then_some(())).await;
    assert!(stack.api.is_running() && stack.poller.is_running());
}

#[tokio::test]
async fn a_postgres_that_says_nothing_is_given_up_within_a_bound() {
    let Some(postgres) = Postgres::start().await.unwrap() else { return };
    let link = Proxy::to(&postgres.address()).await.unwrap();
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let setup = Setup { database_url: Some(postgres.url_behind(&link.address())), ..Setup::default() };
    let mut stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    sim.handle.arm(stepcast_sdnext_sim::Fault::Hang, 1);
    let rendering = http.submit(&small("meanwhile")).await;
    until("it renders", async || sim.truth().running).await;

    link.set(Mode::Stall);
    let_go(&sim).await;
    let answers = join_all((0..20).map(async |n| {
        let asked = Instant::now();
        let answer = match n % 3 {
            0 => http.post(SUBMIT, &small(&format!("refused {n}"))).await,
            1 => http.get("/generation/jobs").await,
            _ => http.get(&format!("/generation/jobs/{rendering}")).await,
        };
        (answer, asked.elapsed())
    }));
    for (answer, took) in answers.await {
        assert_try_later(&answer, "database-unavailable");
        assert!(took < ANSWERED_WITHIN, "{took:?}");
    }
    until("it is not ready", async || (http.get("/health/ready").await.status == 503).then_some(())).await;
    // What was under way is lost for good: the ends of these connections never meet again.
    link.set(Mode::Cut);
    tokio::time::sleep(Duration::from_millis(200)).await;
    link.set(Mode::Pass);

    let after = until("submits are taken again", async || {
        let answer = http.post(SUBMIT, &small("after")).await;
        (answer.status == 202).then(|| answer.json["job_id"].as_str().unwrap().to_owned())
    })
    .await;
    for id in [&rendering, &after] {
        let job = http.ended(id).await;
        assert_image(&http, &job).await;
        assert_eq!(job["attempt"], 1, "{job}");
    }
    assert_eq!((rows_in(&postgres.url(), "jobs").await, sim.truth().renders_started), (2, 2));
    assert!(stack.api.is_running());
}

#[tokio::test]
async fn connections_to_postgres_that_died_without_a_word_are_replaced() {
    let Some(postgres) = Postgres::start().await.unwrap() else { return };
    let link = Proxy::to(&postgres.address()).await.unwrap();
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let setup = Setup { database_url: Some(postgres.url_behind(&link.address())), ..Setup::default() };
    let mut stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let waits = with_priority(&small("many"), "low");
    // So many that every connection is in the midst of a statement when it dies.
    let answered = watch::Sender::new(0_u64);
    let client = async || {
        loop {
            let list = http.get("/generation/jobs?limit=500");
            let (submitted, _) = tokio::join!(http.post(SUBMIT, &waits), list);
            if submitted.status == 202 {
                answered.send_modify(|answered| *answered += 1);
            }
        }
    };
    let clients = join_all((0..24).map(|_| client()));
    let watched = async {
        let mut seen = answered.subscribe();
        within("they are busy", seen.wait_for(|answered| *answered > 200)).await.unwrap();
        link.forget();
        let forgotten = Instant::now();
        let before = *answered.borrow();
        within("they are answered again", seen.wait_for(|answered| *answered > before + 200)).await.unwrap();
        forgotten.elapsed()
    };
    let took = tokio::select! {
        never = clients => panic!("{never:?} clients never end"),
        took = watched => took,
    };
    assert!(took < 2 * ANSWERED_WITHIN, "{took:?}");
    let last = http.submit(&with_priority(&small("last"), "high")).await;
    assert_image(&http, &http.ended(&last).await).await;
    assert!(stack.api.is_running());
}
