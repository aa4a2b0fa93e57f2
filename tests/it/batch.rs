//! Several jobs at once, jobs again, and jobs in another order.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepcast_shared::ids::Owner;
use stepcast_shared::rpc::{self, RetryAnswer, RetryRequest};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;

#[tokio::test]
async fn a_batch_is_accepted_whole_listed_together_and_cancelled_together() {
    let sim = Sim::start(Duration::from_millis(300)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let wrong = json!({"jobs": [{"prompt": "fine"}, {"prompt": "", "steps": 0}]});
    let refused = http.post("/generation/batch", &wrong).await;
    assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(refused.json["errors"][0]["pointer"], "/jobs/1/prompt", "{}", refused.json);
    assert_eq!(http.get("/generation/jobs").await.json["jobs"], json!([]), "nothing of it was stored");

    let body = json!({"job": {"prompt": "a hill", "steps": 40}, "seeds": [1, 2, 3]});
    let headers = [("idempotency-key", "batch-1")];
    let send = async || http.send(Method::POST, "/generation/batch", body.to_string().into(), &headers).await;
    let batch = send().await;
    assert_eq!(batch.status, StatusCode::ACCEPTED, "{}", batch.json);
    assert_eq!(send().await.json, batch.json, "the key replays the whole batch");
    let id = batch.json["batch_id"].as_str().unwrap();
    let listed = http.get(&format!("/generation/jobs?batch_id={id}")).await.json;
    let seeds: Vec<&Value> =
        listed["jobs"].as_array().unwrap().iter().map(|job| &job["params"]["seed"]).collect();
    assert_eq!(seeds, [3, 2, 1], "newest first");

    until("the first one renders", async || sim.truth().running).await;
    let cancelled = http.post(&format!("/generation/batch/{id}/cancel"), &json!(null)).await;
    assert_eq!(
        (cancelled.status, &cancelled.json["success"]),
        (StatusCode::OK, &json!(true)),
        "{}",
        cancelled.json
    );
    for job in batch.json["jobs"].as_array().unwrap() {
        assert_eq!(http.ended(job["job_id"].as_str().unwrap()).await["status"], "cancelled");
    }
    for what in ["cancel", "retry"] {
        let path = format!("/generation/batch/01890000-0000-7000-8000-000000000000/{what}");
        assert_eq!(http.post(&path, &json!(null)).await.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn what_a_batch_did_not_bring_is_submitted_again() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let small = |prompt: &str| json!({"prompt": prompt, "steps": 2, "width": 64, "height": 64});
    let refused = |prompt: &str| json!({"prompt": prompt, "sampler_name": "unheard of"});
    let jobs = json!({"jobs": [refused("one"), small("two"), refused("three")]});
    let first = http.post("/generation/batch", &jobs).await.json;
    for job in first["jobs"].as_array().unwrap() {
        http.ended(job["job_id"].as_str().unwrap()).await;
    }
    let path = format!("/generation/batch/{}/retry", first["batch_id"].as_str().unwrap());
    let headers = [("idempotency-key", "again-1")];
    let send = async || http.send(Method::POST, &path, "".into(), &headers).await;
    let again = send().await;
    assert_eq!(again.status, StatusCode::ACCEPTED, "{}", again.json);
    assert_eq!(send().await.json, again.json, "the key replays the answer");
    assert_ne!(again.json["batch_id"], first["batch_id"]);
    let mut prompts = Vec::new();
    for job in again.json["jobs"].as_array().unwrap() {
        let job = http.ended(job["job_id"].as_str().unwrap()).await;
        assert_eq!((&job["status"], &job["batch_id"]), (&json!("failed"), &again.json["batch_id"]), "{job}");
        prompts.push(job["params"]["prompt"].as_str().unwrap().to_owned());
    }
    assert_eq!(prompts, ["one", "three"], "those that failed, in their order");

    let done = http.post("/generation/batch", &json!({"jobs": [small("four")]})).await.json;
    http.ended(done["jobs"][0]["job_id"].as_str().unwrap()).await;
    let path = format!("/generation/batch/{}/retry", done["batch_id"].as_str().unwrap());
    let nothing = http.post(&path, &json!(null)).await;
    assert_eq!(
        (nothing.status, &nothing.json["type"]),
        (StatusCode::CONFLICT, &json!("/problems/nothing-to-retry")),
        "{}",
        nothing.json
    );
}

#[tokio::test]
async fn a_service_has_jobs_submitted_again_and_is_told_of_each() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let small = |prompt: &str| json!({"prompt": prompt, "steps": 2, "width": 64, "height": 64});
    let (one, two) = (http.submit(&small("one")).await, http.submit(&small("two")).await);
    let unknown = "01890000-0000-7000-8000-000000000000";
    let client = async_nats::connect(stack.nats.url()).await.unwrap();
    let ask = async |ids: &[&str]| {
        let job_ids = ids.iter().map(|id| id.parse().unwrap()).collect();
        let request = RetryRequest { owner: Owner::anonymous(), job_ids };
        rpc::call::<_, RetryAnswer>(&client, rpc::RETRY, &request, Duration::from_secs(30)).await
    };
    let answer = ask(&[&two, unknown, &one]).await.unwrap().jobs;
    let told: Vec<(String, bool)> =
        answer.iter().map(|outcome| (outcome.job_id.to_string(), outcome.success)).collect();
    assert_eq!(told, [(two, true), (unknown.to_owned(), false), (one, true)]);
    assert!(answer[1].job.is_none() && answer[1].message.contains(unknown), "{answer:?}");
    for (outcome, prompt) in [(&answer[0], "two"), (&answer[2], "one")] {
        let new = outcome.job.as_ref().unwrap().job_id;
        assert_ne!(new, outcome.job_id);
        let job = http.ended(&new.to_string()).await;
        assert_eq!(
            (&job["status"], &job["params"]["prompt"]),
            (&json!("completed"), &json!(prompt)),
            "{job}"
        );
    }
    let Err(rpc::Error::Refused(problem)) = ask(&[]).await else { panic!("it names no job") };
    assert_eq!(problem.status, 400, "{problem:?}");
}

#[tokio::test]
async fn a_job_is_submitted_again_and_a_waiting_one_moved_forward() {
    let sim = Sim::start(Duration::from_millis(300)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let first = http.submit(&json!({"prompt": "first", "steps": 10, "width": 256, "height": 256})).await;
    until("it renders", async || sim.truth().running).await;
    let small =
        |prompt: &str| json!({"prompt": prompt, "steps": 2, "width": 256, "height": 256, "label": "mine"});
    let one = http.submit(&small("one")).await;
    let two = http.submit(&small("two")).await;
    let patch = async |id: &str, body: Value| {
        http.send(Method::PATCH, &format!("/generation/jobs/{id}"), body.to_string().into(), &[]).await
    };
    let moved = patch(&two, json!({"priority": "high"})).await;
    assert_eq!((moved.status, &moved.json["position"]), (StatusCode::OK, &json!(1)), "{}", moved.json);
    assert_eq!(patch(&two, json!({"priority": "urgent"})).await.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(patch(&first, json!({"priority": "high"})).await.status, StatusCode::CONFLICT);
    http.ended(&one).await;
    let order: Vec<String> = sim.truth().finished.into_iter().map(|job| job.prompt).collect();
    assert_eq!(order, ["first", "two", "one"]);

    let again = http.post(&format!("/generation/jobs/{one}/retry"), &json!(null)).await;
    assert_eq!(again.status, StatusCode::ACCEPTED, "{}", again.json);
    let again = again.json["job_id"].as_str().unwrap();
    assert_ne!(again, one);
    let job = http.ended(again).await;
    assert_eq!((&job["status"], &job["label"]), (&json!("completed"), &json!("mine")), "{job}");
    assert_eq!(job["params"], http.job(&one).await["params"]);
}
