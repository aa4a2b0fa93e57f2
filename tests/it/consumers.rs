//! Services of others, as `docs/CONSUMERS.md` shows them: the very files, as the user that they would have.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use stepcast_sdnext_sim::Config;
use stepcast_tests::bus::password;
use stepcast_tests::guarded::Guarded;
use stepcast_tests::process::{Process, binary};
use stepcast_tests::wait::until;
use tokio::process::Command;

fn documents() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

/// How an example is started: its program, and what comes before its own arguments.
type Example = fn() -> Command;

fn python(file: &str) -> Command {
    let interpreter = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/python");
    assert!(interpreter.exists(), "`make test` installs what the examples need first");
    let mut command = Command::new(interpreter);
    command.arg(documents().join("examples").join(file));
    command
}

fn billing_in_python() -> Command {
    python("billing.py")
}

fn billing_in_rust() -> Command {
    Command::new(binary("examples/billing"))
}

/// As a user of NATS, in a folder where it may write.
fn run_as(mut command: Command, all: &Guarded, user: &str, folder: &Path) -> Command {
    command
        .env("NATS_URL", all.bus.url())
        .env("NATS_USER", user)
        .env("NATS_PASSWORD", password(user))
        .current_dir(folder);
    command
}

/// Runs a command to its end; returns what it printed.
async fn output(mut command: Command) -> String {
    let output = command.kill_on_drop(true).output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

async fn create_consumer(all: &Guarded, folder: &Path) {
    let mut create = run_as(billing_in_python(), all, "operator", folder);
    // What a crash left unacknowledged is not to be waited for as long as one would in earnest.
    create.args(["create", "--ack-wait", "2"]);
    assert_eq!(output(create).await.trim(), "reader is there");
}

async fn kill(process: &mut Process) {
    process.signal(Signal::KILL);
    process.end().await;
}

async fn fast() -> Guarded {
    let simulated = Config { step_time: Duration::from_millis(5), rate_limit: 0, ..Config::default() };
    Guarded::start(simulated).await.unwrap()
}

async fn submit(all: &Guarded, owner: &str, jobs: Vec<Value>) -> Vec<String> {
    // Until people log in, only a service that is trusted says whose a job is.
    let request = json!({"owner": owner, "jobs": jobs}).to_string();
    let answer = all.operator.request("stepcast.v1.rpc.submit", request.into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    let jobs = answer["jobs"].as_array().unwrap_or_else(|| panic!("{answer}"));
    jobs.iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}

/// Waits until each of the jobs has ended, and adds up what its owner owes.
async fn owed(all: &Guarded, owner: &str, ids: &[String]) -> Value {
    let (mut jobs, mut images, mut steps) = (0, 0, 0);
    for id in ids {
        let request = json!({"owner": owner, "job_id": id}).to_string();
        let job = until(&format!("{id} has ended"), async || {
            let answer = all.operator.request("stepcast.v1.rpc.get", request.clone().into()).await.ok()?;
            let job: Value = serde_json::from_slice(&answer.payload).ok()?;
            job["finished_at"].is_string().then_some(job)
        })
        .await;
        if job["status"] == "completed" {
            let count = job["images"].as_array().unwrap().len();
            jobs += 1;
            images += count;
            steps += count * usize::try_from(job["params"]["steps"].as_u64().unwrap_or(20)).unwrap();
        }
    }
    json!({"owner": owner, "jobs": jobs, "images": images, "steps": steps})
}

/// Counts through crashes, and compares with what really was rendered.
async fn billing_counts_everything_once(billing: Example) {
    let all = fast().await;
    let folder = tempfile::tempdir().unwrap();
    let jetstream = jetstream::new(all.operator.clone());
    let start =
        || Process::start("billing", run_as(billing(), &all, "reader", folder.path()).arg("count")).unwrap();
    let counting = async |process: &mut Process| {
        process.line(|line| (line == "counting").then_some(())).await.unwrap();
    };
    let small = |steps: u32, images: u32| json!({"prompt": "a fox", "steps": steps, "n_iter": images, "width": 64, "height": 64});

    // Whoever counts has to be given the consumer first.
    create_consumer(&all, folder.path()).await;
    let mut first = start();
    counting(&mut first).await;
    let mut ann = submit(
        &all,
        "ann",
        vec![small(2, 1), small(3, 2), json!({"prompt": "the default of steps", "width": 64, "height": 64})],
    )
    .await;
    let bob = submit(
        &all,
        "bob",
        vec![
            small(4, 1),
            json!({"prompt": "one that is refused", "sampler_name": "none such", "width": 64, "height": 64}),
        ],
    )
    .await;
    let report = async || {
        let mut command = run_as(billing(), &all, "reader", folder.path());
        command.arg("report");
        let sums = output(command).await;
        sums.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let owed_by_bob = owed(&all, "bob", &bob).await;
    assert_eq!(owed_by_bob["jobs"], 1, "what failed is not paid for");
    until("bob's is counted", async || report().await.contains(&owed_by_bob).then_some(())).await;
    // Killed while there is something to do, away while more is done, and killed again.
    ann.extend(submit(&all, "ann", vec![small(2, 3); 4]).await);
    kill(&mut first).await;
    ann.extend(submit(&all, "ann", vec![small(1, 1); 3]).await);
    let mut second = start();
    counting(&mut second).await;
    ann.extend(submit(&all, "ann", vec![small(3, 1); 3]).await);
    kill(&mut second).await;
    let mut third = start();
    counting(&mut third).await;
    let expected = vec![owed(&all, "ann", &ann).await, owed_by_bob];
    let last = until("everything is counted", async || {
        let report = report().await;
        (report == expected).then_some(report)
    })
    .await;

    // Everything once more, as if nothing had been acknowledged: each event is known.
    let stream = jetstream.get_stream("STEPCAST_EVENTS").await.unwrap();
    kill(&mut third).await;
    stream.delete_consumer("reader").await.unwrap();
    create_consumer(&all, folder.path()).await;
    let mut fourth = start();
    counting(&mut fourth).await;
    until("all was read again", async || {
        let mut consumer = stream.get_consumer::<jetstream::consumer::pull::Config>("reader").await.ok()?;
        let info = consumer.info().await.ok()?;
        (info.num_pending == 0 && info.num_ack_pending == 0 && info.delivered.consumer_sequence > 0)
            .then_some(())
    })
    .await;
    assert_eq!(report().await, last, "nothing is counted twice");
}

#[tokio::test]
async fn billing_in_python_counts_everything_once_through_crashes() {
    billing_counts_everything_once(billing_in_python).await;
}

#[tokio::test]
async fn billing_in_rust_counts_everything_once_through_crashes() {
    billing_counts_everything_once(billing_in_rust).await;
}

#[tokio::test]
async fn a_gallery_hangs_each_image_also_of_what_it_missed() {
    let all = fast().await;
    let http = all.http();
    let folder = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = run_as(python("gallery.py"), &all, "reader", folder.path());
        Process::start("gallery", command.args(["--stepcast", http.url()])).unwrap()
    };
    let job = |images: u32| json!({"prompt": "a <b>fox</b>", "steps": 2, "n_iter": images, "width": 64, "height": 64});
    let mut ids = vec![http.submit(&job(1)).await];
    http.ended(&ids[0]).await;
    let mut gallery = start();
    gallery.line(|line| (line == "listening").then_some(())).await.unwrap();
    ids.push(http.submit(&job(2)).await);
    let hangs = async |ids: &[String]| {
        let mut expected: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for id in ids {
            let images = http.ended(id).await["images"].as_array().unwrap().clone();
            for (index, url) in images.iter().enumerate() {
                let image = http.send(Method::GET, url.as_str().unwrap(), "".into(), &[]).await;
                expected.insert(format!("{id}-{index}.jpg"), image.bytes.to_vec());
            }
        }
        let folder = folder.path().join("gallery");
        until("all images hang", async || {
            let there = |name: &String, bytes: &Vec<u8>| {
                std::fs::read(folder.join(name)).is_ok_and(|it| it == *bytes)
            };
            let page = std::fs::read_to_string(folder.join("index.html")).unwrap_or_default();
            let on_the_page = expected.keys().all(|name| page.contains(&format!("src=\"{name}\"")));
            (expected.iter().all(|(name, bytes)| there(name, bytes)) && on_the_page).then_some(page)
        })
        .await
    };
    let page = hangs(&ids).await;
    assert!(
        page.contains("a &lt;b&gt;fox&lt;/b&gt;") && !page.contains("<b>fox"),
        "a prompt is text: {page}"
    );
    kill(&mut gallery).await;
    ids.push(http.submit(&job(1)).await);
    http.ended(&ids[2]).await;
    let mut gallery = start();
    let page = hangs(&ids).await;
    assert_eq!(page.matches("<figure>").count(), 4, "each hangs once");
    assert!(gallery.is_running());
}

#[test]
fn what_the_documentation_quotes_is_what_runs() {
    let text = std::fs::read_to_string(documents().join("CONSUMERS.md")).unwrap();
    let mut quoted = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(file) =
            line.strip_prefix("```").and_then(|language| language.split_once(' ')).map(|(_, it)| it)
        else {
            continue;
        };
        let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let source =
            std::fs::read_to_string(documents().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(
            !block.is_empty() && source.contains(&block.join("\n")),
            "not in {file}:\n{}",
            block.join("\n")
        );
        quoted.push(file.to_owned());
    }
    for file in std::fs::read_dir(documents().join("examples")).unwrap() {
        let name = format!("examples/{}", file.unwrap().file_name().to_string_lossy());
        assert!(
            quoted.contains(&name) || name == "examples/requirements.txt",
            "docs/CONSUMERS.md does not quote {name}"
        );
    }
}
