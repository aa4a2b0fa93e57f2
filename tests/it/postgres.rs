//! The same contract on both databases, and what only PostgreSQL has: several apis on one database.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::join_all;
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use stepcast_sdnext_sim::Fault;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats;
use stepcast_tests::check;
use stepcast_tests::client::Http;
use stepcast_tests::database::{Database, number};
use stepcast_tests::nats::server_binary;
use stepcast_tests::process::{Process, binary};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;
use tokio::process::Command;

use crate::recorded;

/// Each scenario once on SQLite and once on PostgreSQL.
macro_rules! on_both {
    ($($scenario:ident),+ $(,)?) => {$(
        mod $scenario {
            use stepcast_tests::database::Database;

            #[tokio::test]
            async fn on_sqlite() {
                super::scenarios::$scenario(&Database::Sqlite).await;
            }

            #[tokio::test]
            async fn on_postgres() {
                if let Some(database) = Database::postgres().await {
                    super::scenarios::$scenario(&database).await;
                }
            }
        }
    )+};
}

on_both!(
    jobs_of_several_kinds_are_rendered_once_each,
    a_key_is_one_job_however_often_it_is_sent,
    lists_are_filtered_paged_and_in_the_order_of_service,
    what_may_pass_is_tried_again_and_noted,
    a_waiting_and_a_running_job_are_cancelled,
    a_deleted_job_is_gone_with_its_attempts,
    a_backend_kept_from_work_is_given_none,
);

fn small(prompt: &str) -> Value {
    json!({"prompt": prompt, "steps": 2, "width": 64, "height": 64})
}

fn with(body: &Value, more: &Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn picture() -> String {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&[90; 64 * 64 * 3])).unwrap();
    STANDARD.encode(bytes)
}

fn ids(list: &Value) -> Vec<String> {
    list["jobs"].as_array().unwrap().iter().map(|job| job["job_id"].as_str().unwrap().to_owned()).collect()
}

/// How often each prompt was rendered to its end.
fn renders(sims: &[Sim]) -> BTreeMap<String, usize> {
    let mut renders = BTreeMap::new();
    for job in sims.iter().flat_map(|sim| sim.truth().finished) {
        *renders.entry(job.prompt).or_default() += 1;
    }
    renders
}

mod scenarios {
    use super::*;

    async fn stack(database: &Database, step_time: Duration) -> (Sim, Stack, Http) {
        let sim = Sim::start(step_time).await.unwrap();
        let stack = Stack::start_on(database.setup(), &[("gpu", sim.url())]).await.unwrap();
        let http = stack.http();
        (sim, stack, http)
    }

    pub async fn jobs_of_several_kinds_are_rendered_once_each(database: &Database) {
        let sims = [
            Sim::start(Duration::from_millis(60)).await.unwrap(),
            Sim::start(Duration::from_millis(90)).await.unwrap(),
        ];
        let backends = [("fast", sims[0].url()), ("slow", sims[1].url())];
        let stack = Stack::start_on(database.setup(), &backends).await.unwrap();
        let http = stack.http();
        let mut watcher = stack.watcher().await.unwrap();
        watcher.subscribe(None).await;
        let from = json!({"init_images": [picture()], "denoising_strength": 0.5, "steps": 6});
        let cases = [
            (small("plain"), 1),
            (with(&small("in two batches"), &json!({"n_iter": 2})), 2),
            (with(&small("two at once"), &json!({"batch_size": 2})), 2),
            (with(&small("from an image"), &from), 1),
            (with(&small("first"), &json!({"priority": "high"})), 1),
            (with(&small("last"), &json!({"priority": "low", "deadline_seconds": 3600})), 1),
        ];
        let mut submitted = Vec::new();
        for (body, images) in &cases {
            submitted.push((http.submit(body).await, *images));
        }
        for (id, images) in &submitted {
            watcher.ended(id).await;
            check::messages(id, &watcher.about(id));
            let job = http.job(id).await;
            assert_eq!(
                (&job["status"], job["images"].as_array().unwrap().len()),
                (&json!("completed"), *images)
            );
            for url in job["images"].as_array().unwrap() {
                let image = http.get(url.as_str().unwrap()).await;
                assert_eq!(check::decoded_size(&image.bytes), (64, 64));
            }
        }
        let renders = renders(&sims);
        assert!(renders.len() == cases.len() && renders.values().all(|times| *times == 1), "{renders:?}");
        let left = "SELECT CAST(COUNT(*) AS BIGINT) FROM outbox";
        until("the outbox is empty", async || (number(&stack.database_url(), left).await == 0).then_some(()))
            .await;
    }

    pub async fn a_key_is_one_job_however_often_it_is_sent(database: &Database) {
        let (sim, _stack, http) = stack(database, Duration::from_millis(20)).await;
        let send = async |body: Value| {
            let headers = [("content-type", "application/json"), ("idempotency-key", "once")];
            http.send(Method::POST, "/generation/queue-generation", body.to_string().into(), &headers).await
        };
        let answers = join_all((0..8).map(|_| send(small("once")))).await;
        for answer in &answers {
            assert_eq!(answer.status, 202, "{}", answer.json);
            assert_eq!(answer.json["job_id"], answers[0].json["job_id"], "all are told of the same job");
        }
        assert_eq!(send(small("something else")).await.status, 409);
        http.ended(answers[0].json["job_id"].as_str().unwrap()).await;
        assert_eq!(ids(&http.get("/generation/jobs").await.json).len(), 1);
        assert_eq!(sim.truth().renders_started, 1);
    }

    pub async fn lists_are_filtered_paged_and_in_the_order_of_service(database: &Database) {
        let (sim, _stack, http) = stack(database, Duration::from_millis(300)).await;
        let running = http.submit(&json!({"prompt": "holds the server", "steps": 300})).await;
        until("it renders", async || sim.truth().running).await;
        let mut waiting = Vec::new();
        for (index, priority) in ["low", "normal", "high", "normal"].into_iter().enumerate() {
            let more = json!({"priority": priority, "label": if index < 2 { "early" } else { "late" }});
            waiting.push(http.submit(&with(&small("waits"), &more)).await);
        }
        let served = [&running, &waiting[2], &waiting[1], &waiting[3], &waiting[0]].map(String::clone);
        until("the list is in the order of service", async || {
            (ids(&http.get("/generation/jobs/active").await.json) == served).then_some(())
        })
        .await;
        for (place, id) in served[1..].iter().enumerate() {
            assert_eq!(http.job(id).await["position"], place + 1, "{id}");
        }
        let newest_first: Vec<String> = waiting.iter().rev().chain([&running]).cloned().collect();
        let mut seen = Vec::new();
        let mut path = "/generation/jobs?limit=2".to_owned();
        loop {
            let page = http.get(&path).await.json;
            seen.extend(ids(&page));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            path = format!("/generation/jobs?limit=2&cursor={cursor}");
        }
        assert_eq!(seen, newest_first);
        assert_eq!(ids(&http.get("/generation/jobs?label=early").await.json), [&*waiting[1], &*waiting[0]]);
        assert_eq!(ids(&http.get("/generation/jobs?label=late&status=pending").await.json).len(), 2);
        assert_eq!(ids(&http.get("/generation/jobs?status=running").await.json), [running]);
        assert_eq!(ids(&http.get("/generation/jobs?status=failed").await.json).len(), 0);
    }

    pub async fn what_may_pass_is_tried_again_and_noted(database: &Database) {
        let (sim, _stack, http) = stack(database, Duration::from_millis(20)).await;
        sim.handle.arm(Fault::Http500, 1);
        let ended = http.ended(&http.submit(&with(&small("again"), &json!({"max_attempts": 2}))).await).await;
        assert_eq!((&ended["status"], &ended["attempt"]), (&json!("completed"), &json!(2)), "{ended}");
        sim.handle.arm(Fault::Http500, 2);
        let ended = http.ended(&http.submit(&with(&small("never"), &json!({"max_attempts": 2}))).await).await;
        assert_eq!((&ended["status"], &ended["attempt"]), (&json!("failed"), &json!(2)), "{ended}");
        assert_eq!(ended["error"]["attempts"].as_array().map(Vec::len), Some(2), "{ended}");
    }

    pub async fn a_waiting_and_a_running_job_are_cancelled(database: &Database) {
        let (sim, _stack, http) = stack(database, Duration::from_millis(200)).await;
        let running = http.submit(&json!({"prompt": "runs", "steps": 300})).await;
        let waiting = http.submit(&small("waits")).await;
        until("the first one renders", async || sim.truth().running.filter(|running| running.step >= 1))
            .await;
        for id in [&waiting, &running] {
            let answer = http.post(&format!("/generation/jobs/{id}/cancel"), &json!(null)).await;
            assert_eq!(answer.status, 200, "{}", answer.json);
            let ended = http.ended(id).await;
            assert_eq!(
                (&ended["status"], &ended["error"]["code"]),
                (&json!("cancelled"), &json!("cancelled"))
            );
        }
        let again = http.post(&format!("/generation/jobs/{running}/cancel"), &json!(null)).await;
        assert_eq!(again.status, 409);
        assert_eq!(http.ended(&http.submit(&small("after")).await).await["status"], "completed");
        assert!(!renders(&[sim]).contains_key("waits"), "the waiting one was never rendered");
    }

    pub async fn a_deleted_job_is_gone_with_its_attempts(database: &Database) {
        let (sim, stack, http) = stack(database, Duration::from_millis(20)).await;
        sim.handle.arm(Fault::Http500, 1);
        let id = http.submit(&with(&small("again"), &json!({"max_attempts": 2}))).await;
        http.ended(&id).await;
        let gone = http.send(Method::DELETE, &format!("/generation/jobs/{id}"), "".into(), &[]).await;
        assert_eq!(gone.status, 204, "{}", gone.json);
        for table in ["jobs", "attempts"] {
            let left = format!("SELECT CAST(COUNT(*) AS BIGINT) FROM {table}");
            assert_eq!(number(&stack.database_url(), &left).await, 0, "{table}");
        }
    }

    pub async fn a_backend_kept_from_work_is_given_none(database: &Database) {
        let (sim, _stack, http) = stack(database, Duration::from_millis(200)).await;
        let running = http.submit(&json!({"prompt": "runs", "steps": 10})).await;
        until("it renders", async || sim.truth().running).await;
        let ask = async |order: &str| {
            http.post(&format!("/generation/backends/gpu/{order}"), &json!(null)).await.json
        };
        assert_eq!(ask("drain").await["drained"], false, "it still renders");
        let waiting = http.submit(&small("waits")).await;
        assert_eq!(http.ended(&running).await["status"], "completed");
        until("it is empty", async || (ask("drain").await["drained"] == true).then_some(())).await;
        assert_eq!(ask("pause").await["paused"], true, "the last word stands");
        assert_eq!(http.job(&waiting).await["waiting_for"], "paused");
        assert_eq!(sim.truth().renders_started, 1);
        ask("resume").await;
        assert_eq!(http.ended(&waiting).await["status"], "completed");
    }
}

#[tokio::test]
async fn two_apis_on_one_database_lose_and_double_nothing_when_one_is_killed() {
    let Some(database) = Database::postgres().await else { return };
    let sims = [
        Sim::start(Duration::from_millis(20)).await.unwrap(),
        Sim::start(Duration::from_millis(20)).await.unwrap(),
    ];
    let backends = [("one", sims[0].url()), ("two", sims[1].url())];
    let stack = Stack::start_on(database.setup(), &backends).await.unwrap();
    let (mut other, other_http) = stack.another_api().await.unwrap();
    let http = stack.http();

    let mut expected = BTreeMap::new();
    for n in 0..20 {
        let prompt = format!("calm {n}");
        let id = if n % 2 == 0 { &http } else { &other_http }.submit(&small(&prompt)).await;
        expected.insert(id, prompt);
    }
    // A storm on the second, which dies in the midst of it: what was not answered is sent again, with the same key.
    let storm = join_all((0..30).map(|n| submit_once(&stack, &other_http, n)));
    let killed = async {
        let accepted = "SELECT CAST(COUNT(*) AS BIGINT) FROM jobs";
        until("some of the storm is accepted", async || {
            (number(&stack.database_url(), accepted).await > 25).then_some(())
        })
        .await;
        other.signal(Signal::KILL);
        other.end().await;
    };
    let (stormy, ()) = tokio::join!(storm, killed);
    for (n, id) in stormy.into_iter().enumerate() {
        expected.insert(id, format!("storm {n}"));
    }
    assert_eq!(expected.len(), 50, "every submit is a job of its own");

    for id in expected.keys() {
        assert_eq!(http.ended(id).await["status"], "completed", "{id}");
    }
    let renders = renders(&sims);
    for prompt in expected.values() {
        assert_eq!(renders.get(prompt), Some(&1), "{prompt} was rendered once");
    }
    assert_eq!(renders.len(), 50, "nothing else was rendered");
    let client = nats::connect("test", &NatsConfig::at(stack.nats.url())).await.unwrap();
    recorded::each_job_went_straight_through(&client, expected.keys()).await;
    let left = "SELECT CAST(COUNT(*) AS BIGINT) FROM outbox";
    until("the outbox is empty", async || (number(&stack.database_url(), left).await == 0).then_some(()))
        .await;
}

/// Submits to an api that may die, then to the one that stays.
async fn submit_once(stack: &Stack, first: &Http, n: usize) -> String {
    let body = small(&format!("storm {n}"));
    let key = format!("storm-{n}");
    let headers = [("content-type", "application/json"), ("idempotency-key", key.as_str())];
    let path = "/generation/queue-generation";
    if let Ok(answer) = first.try_send(Method::POST, path, body.to_string().into(), &headers).await
        && answer.status == 202
    {
        return answer.json["job_id"].as_str().unwrap().to_owned();
    }
    let answer = stack.http().send(Method::POST, path, body.to_string().into(), &headers).await;
    assert_eq!(answer.status, 202, "{}", answer.json);
    answer.json["job_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn everything_on_one_machine_can_keep_its_rows_in_postgres() {
    let Some(database) = Database::postgres().await else { return };
    let url = database.setup().database_url.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(binary("stepcast"));
    command.args(["up", "--demo", "--json", "--listen", "127.0.0.1:0", "--database-url", &url, "--data-dir"]);
    command.arg(folder.path()).env("STEPCAST_NATS_SERVER", server_binary());
    let mut up = Process::start("stepcast up", &mut command).unwrap();
    let ready = up
        .line(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["event"] == "ready"))
        .await
        .unwrap();
    let http = Http::to(ready["url"].as_str().unwrap().trim_start_matches("http://"));
    let id = http.submit(&small("in postgres")).await;
    assert_eq!(http.ended(&id).await["status"], "completed");
    let rows =
        format!("SELECT CAST(COUNT(*) AS BIGINT) FROM jobs WHERE id = '{id}' AND status = 'completed'");
    assert_eq!(number(&url, &rows).await, 1);
    up.signal(Signal::TERM);
    assert!(up.end().await.success());
}
