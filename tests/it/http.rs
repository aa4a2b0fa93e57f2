//! The HTTP contract, over the real api.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use stepcast_tests::check;
use stepcast_tests::client::Http;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;

async fn stack() -> (Sim, Stack, Http) {
    let sim = Sim::start(Duration::from_millis(40)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    (sim, stack, http)
}

const SMALL: fn(&str) -> Value = |prompt| json!({"prompt": prompt, "steps": 2, "width": 64, "height": 64});

#[tokio::test]
async fn the_first_systems_submit_works_unchanged() {
    let (_sim, _stack, http) = stack().await;
    let answer = http
        .send(
            Method::POST,
            "/generation/queue-generation",
            r#"{"prompt":"a beautiful landscape","steps":10}"#.into(),
            &[("content-type", "application/json")],
        )
        .await;
    assert_eq!(answer.status, StatusCode::ACCEPTED);
    assert_eq!(answer.json["job_id"], answer.json["delivery_id"]);
    assert_eq!((&answer.json["status"], &answer.json["position"]), (&json!("pending"), &json!(1)));
    let id = answer.json["job_id"].as_str().unwrap();
    assert_eq!(answer.headers["location"], format!("/generation/jobs/{id}"));
    let job = http.ended(id).await;
    assert_eq!((&job["status"], &job["progress"]), (&json!("completed"), &json!(1.0)));
    assert_eq!(http.get(&format!("/generation/progress/{id}")).await.json["status"], "completed");
}

#[tokio::test]
async fn wrong_input_gets_a_clear_answer_and_stores_nothing() {
    let (_sim, _stack, http) = stack().await;
    let submit = "/generation/queue-generation";
    let long = "x".repeat(100_000);
    for (body, pointer) in [
        (json!({"prompt": ""}), "/prompt"),
        (json!({"prompt": long}), "/prompt"),
        (json!({"prompt": 7}), "/prompt"),
        (json!({}), "/prompt"),
        (json!({"prompt": "x", "steps": 0}), "/steps"),
        (json!({"prompt": "x", "steps": 100_000}), "/steps"),
        (json!({"prompt": "x", "steps": "many"}), "/steps"),
        (json!({"prompt": "x", "width": 1_000_000}), "/width"),
        (json!({"prompt": "x", "colour": "red"}), "/colour"),
        (json!({"prompt": "x", "init_images": ["input:beef"]}), "/init_images/0"),
        (json!({"prompt": "x", "init_images": ["bm90IGFuIGltYWdl"]}), "/init_images/0"),
        (json!([1, 2]), ""),
    ] {
        let answer = http.post(submit, &body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.json);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert_eq!(answer.json["errors"][0]["pointer"], pointer, "{}", answer.json);
    }
    let send = async |body: Vec<u8>| http.send(Method::POST, submit, body.into(), &[]).await;
    assert_eq!(send(b"prompt=x".to_vec()).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(send(vec![0xff; 1000]).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(send(vec![b'['; 100_000]).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(send(vec![b' '; 50_000_000]).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    for path in [
        "/generation/jobs/nope",
        "/generation/progress/1",
        "/generation/jobs?limit=0",
        "/generation/jobs?status=odd",
    ] {
        let answer = http.get(path).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        assert!(answer.json["detail"].is_string(), "{path}: {}", answer.json);
    }
    let unknown = http.get("/generation/jobs/01890000-0000-7000-8000-000000000000").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert_eq!(http.send(Method::PUT, submit, "{}".into(), &[]).await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(http.get("/generation/jobs").await.json["jobs"], json!([]), "nothing was stored");
}

#[tokio::test]
async fn a_key_replays_the_first_answer_and_refuses_another_body() {
    let (_sim, _stack, http) = stack().await;
    let send = async |body: Value, key: &str| {
        let headers = [("idempotency-key", key)];
        http.send(Method::POST, "/generation/queue-generation", body.to_string().into(), &headers).await
    };
    let first = send(SMALL("once"), "key-1").await;
    assert_eq!(first.status, StatusCode::ACCEPTED);
    let again = send(SMALL("once"), "key-1").await;
    assert_eq!((again.status, &again.json), (StatusCode::ACCEPTED, &first.json));
    assert_eq!(send(SMALL("another"), "key-1").await.status, StatusCode::CONFLICT);
    assert_ne!(send(SMALL("once"), "key-2").await.json["job_id"], first.json["job_id"]);
    assert_eq!(send(SMALL("once"), &"k".repeat(129)).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(http.get("/generation/jobs").await.json["jobs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_blocking_submit_answers_with_the_result_or_once_the_wait_is_over() {
    let (sim, _stack, http) = stack().await;
    let done = http.post("/generation/generate?wait=60&return_format=base64", &SMALL("waited for")).await;
    assert_eq!((done.status, &done.json["status"]), (StatusCode::OK, &json!("completed")), "{}", done.json);
    let image = done.json["images"][0].as_str().unwrap();
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, image).unwrap();
    assert_eq!(check::decoded_size(&bytes), (64, 64));

    sim.handle.configure(|config| config.step_time = Duration::from_secs(2));
    let slow = http.post("/generation/generate?wait=0.2", &json!({"prompt": "slow", "steps": 50})).await;
    assert_eq!(slow.status, StatusCode::ACCEPTED, "{}", slow.json);
    let id = slow.json["job_id"].as_str().unwrap();
    http.post(&format!("/generation/jobs/{id}/cancel"), &json!(null)).await;
    http.ended(id).await;
}

#[tokio::test]
async fn lists_go_newest_first_by_pages_and_filters() {
    let (_sim, _stack, http) = stack().await;
    let mut ids = Vec::new();
    for n in 0..5 {
        let mut body = SMALL(&format!("job {n}"));
        body["label"] = if n % 2 == 0 { json!("even") } else { json!("odd") };
        ids.push(http.submit(&body).await);
    }
    for id in &ids {
        http.ended(id).await;
    }
    ids.reverse();
    let ids_of = |page: &Value| -> Vec<String> {
        page["jobs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|job| job["job_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let mut seen = Vec::new();
    let mut path = "/generation/jobs?limit=2".to_owned();
    loop {
        let page = http.get(&path).await.json;
        seen.extend(ids_of(&page));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/generation/jobs?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, ids);
    assert_eq!(ids_of(&http.get("/generation/jobs?label=odd").await.json).len(), 2);
    assert_eq!(ids_of(&http.get("/generation/jobs?status=pending").await.json).len(), 0);
    assert_eq!(ids_of(&http.get("/generation/jobs?backend=gpu&label=odd").await.json).len(), 2);
    assert_eq!(ids_of(&http.get("/generation/jobs?backend=elsewhere").await.json).len(), 0);
    assert_eq!(ids_of(&http.get("/generation/jobs?model=not-asked-for").await.json).len(), 0);
    assert_eq!(http.get("/generation/jobs/active").await.json["jobs"], json!([]));
}

#[tokio::test]
async fn images_are_cached_for_ever_and_served_in_parts() {
    let (_sim, _stack, http) = stack().await;
    let id = http.submit(&SMALL("picture")).await;
    let job = http.ended(&id).await;
    let url = job["images"][0].as_str().unwrap();
    let whole = http.get(url).await;
    let etag = whole.headers["etag"].to_str().unwrap().to_owned();
    assert!(whole.headers["cache-control"].to_str().unwrap().contains("immutable"));
    let known = http.send(Method::GET, url, "".into(), &[("if-none-match", &etag)]).await;
    assert_eq!((known.status, known.bytes.len()), (StatusCode::NOT_MODIFIED, 0));
    let part = http.send(Method::GET, url, "".into(), &[("range", "bytes=10-19")]).await;
    assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.bytes, whole.bytes.slice(10..20));
    assert_eq!(part.headers["content-range"], format!("bytes 10-19/{}", whole.bytes.len()));
    let none = http.send(Method::GET, url, "".into(), &[("range", "bytes=99999999-")]).await;
    assert_eq!(none.status, StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(http.get(&format!("/generation/jobs/{id}/images/7")).await.status, StatusCode::NOT_FOUND);

    let gone = http.send(Method::DELETE, &format!("/generation/jobs/{id}"), "".into(), &[]).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    assert_eq!(http.get(url).await.status, StatusCode::NOT_FOUND);
    assert_eq!(http.get(&format!("/generation/jobs/{id}")).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_uploaded_input_is_used_by_reference() {
    let (sim, _stack, http) = stack().await;
    let source = http.ended(&http.submit(&SMALL("source")).await).await;
    let picture = http.get(source["images"][0].as_str().unwrap()).await.bytes;
    let stored =
        http.send(Method::POST, "/generation/inputs", picture, &[("content-type", "image/jpeg")]).await;
    assert_eq!(stored.status, StatusCode::CREATED, "{}", stored.json);
    assert_eq!((&stored.json["width"], &stored.json["content_type"]), (&json!(64), &json!("image/jpeg")));
    let mut body = SMALL("from an upload");
    body["init_images"] = json!([format!("input:{}", stored.json["input_id"].as_str().unwrap())]);
    body["denoising_strength"] = json!(0.5);
    let job = http.ended(&http.submit(&body).await).await;
    assert_eq!(job["status"], "completed", "{job}");
    assert_eq!(job["params"]["init_images"], body["init_images"]);
    assert!(sim.truth().finished.iter().any(|job| job.prompt == "from an upload"));
    let junk = http.send(Method::POST, "/generation/inputs", "not an image".into(), &[]).await;
    assert_eq!(junk.status, StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test]
async fn the_description_names_every_route_and_the_page_stands_alone() {
    let (_sim, _stack, http) = stack().await;
    let document = http.get("/openapi.json").await.json;
    for path in [
        "/generation/queue-generation",
        "/generation/generate",
        "/generation/jobs",
        "/generation/jobs/active",
        "/generation/jobs/{id}",
        "/generation/jobs/{id}/cancel",
        "/generation/jobs/{id}/images/{n}",
        "/generation/progress/{id}",
        "/generation/inputs",
        "/generation/backends",
    ] {
        assert!(document["paths"][path].is_object(), "{path}");
    }
    assert_eq!(http.get("/docs/").await.status, StatusCode::OK);
    for path in ["/", "/websocket_test.html"] {
        let page = http.get(path).await;
        let text = String::from_utf8(page.bytes.to_vec()).unwrap();
        assert!(text.contains("/ws/progress") && !text.contains("{{"), "{path}");
        assert!(!text.contains("src=\"http") && !text.contains("@import"), "{path}");
    }
    assert_eq!(http.get("/health/live").await.status, StatusCode::OK);
    assert_eq!(http.get("/health/ready").await.status, StatusCode::OK);
    assert!(String::from_utf8_lossy(&http.get("/metrics").await.bytes).contains("stepcast_"));
    assert_eq!(http.get("/nothing/here").await.headers["content-type"], "application/problem+json");
}
