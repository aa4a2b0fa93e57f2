//! Requests that are wrong, limits, credentials, and what the server makes of its own mishaps.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use stepcast_sdnext_sim::{Config, Fault};

use crate::recording::{
    Recording, assert_same_answer, assert_same_course, assert_same_info, image_size, load,
};
use crate::server::{Observed, Server, body, quick};

#[derive(Debug, Deserialize)]
struct Case {
    case: String,
    request: Request,
    response: Answer,
    #[serde(default)]
    progress_after: Value,
    #[serde(default)]
    status_after: Value,
}

#[derive(Debug, Deserialize)]
struct Request {
    method: String,
    path: String,
    #[serde(default)]
    json: Value,
    #[serde(default)]
    raw: Option<String>,
    #[serde(default)]
    auth: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    status: u16,
    body: Value,
    #[serde(default)]
    sizes: Option<Vec<(usize, usize)>>,
}

impl Case {
    async fn send(&self, server: &Server) -> (u16, Value) {
        let Request { method, path, json, raw, .. } = &self.request;
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let mut request = server.client.request(method, format!("{}{path}", server.url));
        if let Some(raw) = raw {
            let kind = if self.case.starts_with("not JSON") { "text/plain" } else { "application/json" };
            request = request.header("content-type", kind).body(raw.clone());
        } else if !json.is_null() {
            request = request.json(json);
        }
        body(request.send().await.expect("an answer")).await
    }

    fn assert_same(&self, status: u16, observed: &Value) {
        let Answer { status: recorded_status, body: recorded, sizes } = &self.response;
        assert_eq!(*recorded_status, status, "{observed}");
        let Some(sizes) = sizes else {
            assert_eq!(recorded, observed);
            return;
        };
        let images: Vec<_> = observed["images"].as_array().expect("a list").iter().map(image_size).collect();
        assert_eq!(sizes, &images, "images");
        let seeded = !self.request.json["seed"].is_null();
        let text = |body: &Value| body["info"].as_str().expect("a text").to_owned();
        assert_same_info(&text(recorded), &text(observed), seeded);
        for (name, value) in recorded["parameters"].as_object().expect("an object") {
            assert!(name == "_trimmed" || value == &observed["parameters"][name], "{name}");
        }
    }
}

#[tokio::test]
async fn odd_requests_are_answered_as_recorded() {
    let cases: Vec<Case> = load("requests");
    let server = Server::start(Config { time_scale: 0.02, ..quick() }).await;
    let mut totals: Option<(u64, u64)> = None;
    for case in &cases {
        println!("{}", case.case);
        let (status, observed) = case.send(&server).await;
        case.assert_same(status, &observed);

        let progress = server.get("/sdapi/v1/progress").await;
        assert_eq!(case.progress_after["progress"], progress["progress"]);
        for (name, value) in case.progress_after.as_object().expect("an object") {
            assert!(name == "progress" || value == &progress["state"][name], "{name}: {progress}");
        }
        let status = server.get("/sdapi/v1/status").await;
        for (name, value) in case.status_after.as_object().expect("an object") {
            assert!(name == "total" || value == &status[name], "{name}: {status}");
        }
        // As many stages begun as there.
        let total = |status: &Value| status["total"].as_u64().expect("a count");
        let (there, here) = (total(&case.status_after), total(&status));
        if let Some((there_before, here_before)) = totals {
            assert_eq!(there - there_before, here - here_before, "stages begun");
        }
        totals = Some((there, here));
    }
}

#[tokio::test]
async fn credentials_are_asked_for_as_recorded() {
    let cases: Vec<Case> = load("auth");
    let server = Server::start(Config { auth: Some("bob:secret".to_owned()), ..quick() }).await;
    for case in &cases {
        println!("{}", case.case);
        let method = Method::from_bytes(case.request.method.as_bytes()).expect("a method");
        let mut request =
            server.client.request(method.clone(), format!("{}{}", server.url, case.request.path));
        request = match case.request.auth.as_deref().and_then(|auth| auth.strip_prefix("basic ")) {
            Some(sent) => {
                let user = sent.split(':').next().expect("a user");
                let password = if case.case.contains("wrong") { "guess" } else { "secret" };
                request.basic_auth(user, Some(password))
            }
            None if case.case.starts_with("bearer") => request.bearer_auth("secret"),
            None => request,
        };
        if method == Method::POST {
            request = request.json(&json!({"prompt": "x", "steps": 2, "width": 256, "height": 256}));
        }
        let response = request.send().await.expect("an answer");
        assert!(response.headers().get("www-authenticate").is_none());
        assert!(response.headers().get("set-cookie").is_none());
        let (status, observed) = body(response).await;
        assert_eq!(case.response.status, status);
        if !case.response.body.is_null() {
            assert_eq!(case.response.body, observed);
        }
    }
}

#[tokio::test]
async fn limited_renders_are_refused_after_their_work() {
    let recording: Value = load("rate-limit-txt2img");
    let server = Server::start(Config { time_scale: 0.0, rate_limit: 300, ..quick() }).await;
    let request = json!({"prompt": "x", "steps": 1, "width": 64, "height": 64});
    let refused = recording["refused"].as_array().expect("a list");
    for _ in 0..recording["ok"].as_u64().expect("a count") {
        assert_eq!(server.txt2img(&request).await.0, 200);
    }
    for recorded in refused {
        assert_eq!(server.txt2img(&request).await, (429, recorded["body"].clone()));
    }
    let history = server.get("/sdapi/v1/history").await;
    let rows = history.as_array().expect("a list");
    let ends = rows.iter().filter(|row| row["job"] == "api-txt" && row["op"] == "end").count();
    assert_eq!(json!(ends), recording["api_txt_end_records_in_history"]);
}

#[tokio::test]
async fn limited_polls_are_refused_by_path() {
    let server = Server::start(Config { rate_limit: 300, ..quick() }).await;
    for _ in 0..300 {
        server.progress().await;
    }
    let response = server.send(Method::GET, "/sdapi/v1/progress", None).await;
    assert!(response.headers().get("retry-after").is_none());
    let detail = "127.0.0.1:/sdapi/v1/progress: rate limit exceeded";
    let expected = json!({"error": "HTTPException", "code": 429, "detail": detail, "body": "",
        "errors": format!("429: {detail}")});
    assert_eq!(body(response).await, (429, expected));
    assert_eq!(server.send(Method::GET, "/sdapi/v1/status", None).await.status(), 200);
}

#[tokio::test]
async fn exception_leaves_the_state_running() {
    let recording: Recording = load("exception-leaves-running");
    let server = Server::start(quick()).await;
    let mut whole = Observed::default();
    for exchange in &recording.exchanges {
        let observed = server.watch(std::slice::from_ref(exchange)).await;
        let (status, body) = &observed.answers[0];
        assert_same_answer(exchange, *status, body);
        if *status == 500 {
            assert_eq!(server.progress().await.job(), "Process");
            assert_eq!(server.get("/sdapi/v1/status").await["status"], "running");
        }
        whole.samples.extend(observed.samples);
        whole.history.extend(observed.history);
    }
    assert_same_course(recording.progress.as_deref().expect("polled"), &whole);
}

/// Replays `name` with `fault`, but for the image sizes, which depended on the preview method.
async fn out_of_memory(name: &str, fault: Option<Fault>, images: usize) {
    let mut recording: Recording = load(name);
    let time_scale = if fault.is_some() { 0.02 } else { 0.2 };
    let server = Server::start(Config { time_scale, ..quick() }).await;
    if let Some(fault) = fault {
        server.handle.arm(fault, 1);
    }
    let observed = server.watch(&recording.exchanges).await;
    assert_same_course(recording.progress.as_deref().expect("polled"), &observed);
    let (status, body) = &observed.answers[0];
    let exchange = &mut recording.exchanges[0];
    let sizes: Vec<_> = body["images"].as_array().expect("a list").iter().map(image_size).collect();
    assert_eq!((sizes.len(), exchange.images.len()), (images, images));
    let wanted = exchange.request["width"].as_u64().expect("a width");
    assert_eq!(sizes.iter().any(|size| size.0 as u64 != wanted), fault.is_some() && images > 0);
    exchange.images = sizes;
    assert_same_answer(exchange, *status, body);
    let log = server.get("/sdapi/v1/log?lines=20").await.to_string();
    assert_eq!(log.contains("can't allocate memory"), fault.is_some());
}

#[tokio::test]
async fn out_of_memory_before_the_first_step() {
    let fault = Some(Fault::OutOfMemoryBeforeFirstStep);
    out_of_memory("out-of-memory-before-first-step", fault, 0).await;
}

#[tokio::test]
async fn out_of_memory_after_the_first_step() {
    out_of_memory("out-of-memory", Some(Fault::OutOfMemoryAfterStep), 1).await;
}

#[tokio::test]
async fn small_job_after_running_out_of_memory() {
    out_of_memory("out-of-memory-then-small", None, 1).await;
}

#[tokio::test]
async fn wedged_server_is_recovered_by_force_only() {
    let steps: Vec<Value> = load("wedged-after-model-switch");
    let server = Server::start(quick()).await;
    server.handle.arm(Fault::Wedged, 1);
    for step in &steps {
        println!("{}", step["step"]);
        let method =
            Method::from_bytes(step["method"].as_str().expect("a method").as_bytes()).expect("a method");
        let json = Some(&step["request"]).filter(|json| !json.is_null());
        let path = step["path"].as_str().expect("a path");
        let (status, observed) = body(server.send(method, path, json).await).await;
        assert_eq!(step["status"], status);
        if let Some(images) = step["images"].as_u64() {
            assert_eq!(observed["images"].as_array().expect("a list").len() as u64, images);
        } else if let Some(word) = step["status_word"].as_str() {
            assert_eq!(observed["status"], word);
        } else if step["body"].is_object() {
            assert_eq!(step["body"], observed);
        }
    }
}

#[tokio::test]
async fn idle_answers_have_the_recorded_shape() {
    let recorded: std::collections::BTreeMap<String, Value> = load("idle");
    let models = vec!["Diffusers/tiny-sd".to_owned()];
    let server = Server::start(Config { models, ..quick() }).await;
    server.txt2img(&json!({"steps": 1, "width": 64, "height": 64})).await;
    for (request, expected) in &recorded {
        let (method, path) = request.split_once(' ').expect("method and path");
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        let json = Some(json!({})).filter(|_| method == Method::POST);
        let (status, observed) = body(server.send(method, path, json.as_ref()).await).await;
        assert_eq!(expected["status"], status, "{request}");
        assert_eq!(expected["shape"], shape(&observed), "{request}");
    }
    assert!(server.get("/sdapi/v1/samplers").await.as_array().expect("a list").len() > 100);
}

/// Names and types of a value, lists by their first item.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("boolean"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("string"),
        Value::Array(items) => items.first().map(shape).into_iter().collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect(),
    }
}
