//! One trace for each job, as a collector gets it from the real binaries.

use std::time::Duration;

use bytes::Bytes;
use reqwest::Method;
use serde_json::{Value, json};
use stepcast_sdnext_sim::Fault;
use stepcast_tests::client::Http;
use stepcast_tests::collector::{Collector, Span, draw};
use stepcast_tests::nats::settled;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use stepcast_tests::wait::until;

/// What a client says that it stands in.
const CLIENTS: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const CLIENTS_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENTS_SPAN: &str = "b7ad6b7169203331";
const PROMPT: &str = "a lighthouse that nobody may read of";

/// Services that export to a collector, over one backend.
struct Traced {
    collector: Collector,
    stack: Stack,
    sim: Sim,
}

impl Traced {
    async fn start() -> Self {
        let collector = Collector::start().await.unwrap();
        let sim = Sim::start(Duration::from_millis(50)).await.unwrap();
        let variables = collector.variables();
        // A job is read again once soon after it was first heard of, and then not while a test lasts.
        let gateway = [variables.clone(), vec![("STEPCAST_GATEWAY_REREAD", "10m".to_owned())]].concat();
        let setup = Setup { api: variables.clone(), gateway, poller: variables, ..Setup::default() };
        let url = sim.url().replace("http://", "http://bob:hunter2@");
        let stack = Stack::start_on(setup, &[("gpu", url)]).await.unwrap();
        Self { collector, stack, sim }
    }

    fn http(&self) -> Http {
        self.stack.http()
    }

    /// Stops the services, which sends what they still have, and leaves what came.
    async fn stop(self) -> Collector {
        let Self { collector, stack, sim: _sim } = self;
        for mut service in [stack.poller, stack.gateway, stack.api] {
            service.signal(rustix::process::Signal::TERM);
            assert!(service.end().await.success(), "{}", service.output());
        }
        collector
    }
}

fn job(more: &Value) -> Value {
    let mut body = json!({"prompt": PROMPT, "steps": 4, "width": 128, "height": 128});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn submit_within(http: &Http, body: &Value, traceparent: &str) -> String {
    let headers = [("content-type", "application/json"), ("traceparent", traceparent)];
    let body = Bytes::from(body.to_string());
    let answer = http.send(Method::POST, "/generation/queue-generation", body, &headers).await;
    answer.json["job_id"].as_str().expect("an accepted job has an id").to_owned()
}

/// The first drawing of the page.
fn documented() -> &'static str {
    let page = include_str!("../../docs/TRACING.md");
    let drawing = page.split_once("```text\n").expect("the page has a drawing").1;
    drawing.split_once("\n```").expect("the drawing ends").0
}

#[tokio::test]
async fn one_trace_holds_the_life_of_a_job_that_is_tried_again() {
    let traced = Traced::start().await;
    let http = traced.http();
    let (mut one, mut other) = (traced.stack.watcher().await.unwrap(), traced.stack.watcher().await.unwrap());
    one.subscribe(None).await;
    other.subscribe(None).await;
    traced.sim.handle.arm(Fault::Http500, 1);
    // Nothing happens to the job while the gateway reads it again: what is told of then is not told live.
    http.post("/generation/backends/gpu/pause", &json!(null)).await;
    let id = submit_within(&http, &job(&json!({"max_attempts": 2})), CLIENTS).await;
    let metrics = Http::to(traced.stack.gateway_address());
    until("the gateway has read the job again", async || {
        let metrics = metrics.get("/metrics").await;
        let metrics = String::from_utf8_lossy(&metrics.bytes).into_owned();
        let read = metrics.lines().find_map(|line| line.strip_prefix("stepcast_gateway_reread_jobs_total "));
        read.filter(|read| *read != "0").map(drop)
    })
    .await;
    http.post("/generation/backends/gpu/resume", &json!(null)).await;
    one.ended(&id).await;
    other.ended(&id).await;
    let ended = http.ended(&id).await;
    assert_eq!((&ended["status"], &ended["attempt"]), (&json!("completed"), &json!(2)), "{ended}");
    check_lines(&traced.stack.poller.output(), &id);
    let collector = traced.stop().await;

    let spans = collector.trace(CLIENTS_TRACE);
    assert_eq!(draw(&spans), documented(), "docs/TRACING.md shows the trace as it is");
    check_attributes(&spans, &id);
    assert!(spans.iter().any(|span| span.parent == CLIENTS_SPAN && span.name.starts_with("POST ")));
    let text = format!("{:?}", collector.spans());
    assert!(!text.contains(PROMPT) && !text.contains("hunter2"), "a trace says what nobody may read: {text}");
}

/// Whoever reads a line of the log knows which backend, job, attempt and trace it is about.
fn check_lines(log: &str, id: &str) {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let started: Vec<Value> = lines.filter(|line| line["fields"]["message"] == "render started").collect();
    assert_eq!(started.len(), 2, "{log}");
    for (line, attempt) in started.iter().zip(1..) {
        let spans = line["spans"].as_array().unwrap();
        let span = |name: &str| spans.iter().find(|span| span["name"] == name).unwrap_or(&Value::Null);
        assert_eq!(span("backend")["backend"], "gpu", "{line}");
        let told = ["job_id", "attempt", "trace_id"].map(|field| &span("attempt")[field]);
        assert_eq!(told, [&json!(id), &json!(attempt), &json!(CLIENTS_TRACE)], "{line}");
    }
}

fn check_attributes(spans: &[Span], id: &str) {
    let all = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
    for span in spans {
        assert_eq!(span.resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert!(span.resource["service.instance.id"].len() > 10, "{span:?}");
        let speaks = ["create job", "claim", "attempt"].contains(&span.name.as_str());
        assert!(!speaks || span.attributes["job_id"] == id, "{span:?}");
        if span.attributes.contains_key("messaging.operation.name") {
            assert_eq!(span.attributes["messaging.system"], "nats");
            assert!(span.attributes["messaging.destination.name"].contains(id), "{span:?}");
        }
    }
    let attempts = all("attempt");
    assert_eq!(attempts[0].attributes["error.type"], "backend_unavailable", "{:?}", attempts[0]);
    assert!(attempts[1].events.iter().any(|event| event == "stage"), "{:?}", attempts[1]);
    assert!(attempts[1].attributes["looks"].parse::<u32>().unwrap() > 0);
    let kinds: Vec<&str> =
        all("publish retrying").iter().map(|it| &*it.attributes["messaging.operation.type"]).collect();
    assert_eq!(kinds, ["send"]);
    // A failure is always looked into.
    let looked_into = |name: &str| all(name).iter().any(|span| span.parent == attempts[0].id);
    assert!(looked_into("GET /sdapi/v1/log") && looked_into("GET /sdapi/v1/progress"), "{spans:?}");
    let post = all("POST /sdapi/v1/txt2img");
    assert_eq!(post[0].attributes["server.address"], "127.0.0.1");
    assert!(post[0].attributes["server.port"].parse::<u16>().is_ok());
}

#[tokio::test]
async fn many_jobs_of_one_request_have_a_trace_each_that_points_to_it() {
    let traced = Traced::start().await;
    let http = traced.http();
    let batch = json!({"job": job(&json!({})), "seeds": [1, 2, 3]});
    let answer = http.post("/generation/batch", &batch).await;
    let ids: Vec<String> = answer.json["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| job["job_id"].as_str().unwrap().to_owned())
        .collect();
    for id in &ids {
        http.ended(id).await;
    }
    let collector = traced.stop().await;
    let spans = collector.spans();
    let request = spans.iter().find(|span| span.name == "POST /generation/batch").unwrap();
    let mut traces = std::collections::BTreeSet::from([request.trace_id.clone()]);
    for id in &ids {
        let created = &collector.of_job("create job", id)[0];
        assert_eq!(created.links, [(request.trace_id.clone(), request.id.clone())], "{created:?}");
        assert!(created.parent.is_empty() && traces.insert(created.trace_id.clone()), "{created:?}");
        assert_eq!(collector.of_job("attempt", id)[0].trace_id, created.trace_id);
    }
}

#[tokio::test]
async fn a_job_from_a_socket_has_a_trace_and_its_cancel_is_part_of_that() {
    let traced = Traced::start().await;
    let http = traced.http();
    http.post("/generation/backends/gpu/pause", &json!(null)).await;
    let mut watcher = traced.stack.watcher().await.unwrap();
    watcher.send(&json!({"type": "submit", "job": job(&json!({}))})).await;
    let submitted = watcher.wait("the answer", |message| message["type"] == "submitted").await;
    let id = submitted["data"]["jobs"][0]["job_id"].as_str().unwrap().to_owned();
    let path = format!("/generation/jobs/{id}/cancel");
    let headers = [("content-type", "application/json"), ("traceparent", CLIENTS)];
    until("it is recorded and can be cancelled at once", async || {
        let answer = http.send(Method::POST, &path, Bytes::from("null"), &headers).await;
        (answer.json["status"] == "cancelled" || answer.status == 409).then_some(())
    })
    .await;
    watcher.ended(&id).await;
    let collector = traced.stop().await;
    let created = &collector.of_job("create job", &id)[0];
    let names: Vec<_> = {
        let mut spans = collector.trace(&created.trace_id);
        spans.sort_by_key(|span| span.start);
        spans.into_iter().map(|span| (span.service, span.name)).collect()
    };
    let begin = [
        ("stepcast-gateway", "submit"),
        ("stepcast-gateway", "stepcast/submit"),
        ("stepcast-api", "stepcast/submit"),
        ("stepcast-api", "create job"),
    ]
    .map(|(service, name)| (service.to_owned(), name.to_owned()));
    assert_eq!(names[..4], begin, "{names:?}");
    assert!(names.iter().any(|(_, name)| name == "publish cancelled"), "{names:?}");
    let cancel = &collector.of_job("cancel", &id)[0];
    assert_eq!(cancel.trace_id, created.trace_id);
    assert_eq!(cancel.links[0].0, CLIENTS_TRACE, "who cancels stands elsewhere: {cancel:?}");
}

#[tokio::test]
async fn a_collector_that_is_away_is_told_of_once_and_holds_nobody_up() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let variables = vec![
        ("STEPCAST_OTLP_ENDPOINT", format!("http://{gone}")),
        // So that batches are lost again and again.
        ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
    ];
    let setup = Setup { api: variables.clone(), poller: variables, ..Setup::default() };
    let stack = Stack::start_on(setup, &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let lost = async || {
        let metrics = http.get("/metrics").await;
        let metrics = String::from_utf8_lossy(&metrics.bytes).into_owned();
        let lost = metrics.lines().find_map(|line| line.strip_prefix("stepcast_trace_spans_lost_total "))?;
        lost.parse::<u64>().ok()
    };
    for _ in 0..3 {
        let before = lost().await.unwrap_or(0);
        let id = http.submit(&job(&json!({}))).await;
        assert_eq!(http.ended(&id).await["status"], "completed");
        until("more spans are lost", async || lost().await.filter(|lost| *lost > before)).await;
    }
    for service in [&stack.api, &stack.poller] {
        let said = service.output().matches("traces are not exported").count();
        assert!(said <= 1, "{}", service.output());
    }
    assert!(stack.api.output().contains("traces are not exported"), "{}", stack.api.output());
    let mut api = stack.api;
    api.signal(rustix::process::Signal::TERM);
    assert!(api.end().await.success(), "{}", api.output());
}

#[tokio::test]
async fn without_an_endpoint_no_header_is_written() {
    let sim = Sim::start(Duration::from_millis(20)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let client = async_nats::connect(stack.nats.url()).await.unwrap();
    let mut messages = client.subscribe("stepcast.v1.>").await.unwrap();
    settled(&client).await.unwrap();
    let id = submit_within(&stack.http(), &job(&json!({})), CLIENTS).await;
    stack.http().ended(&id).await;
    let mut seen = 0;
    until("the end comes by", async || {
        use futures_util::StreamExt as _;
        let message = messages.next().await?;
        let headers = message.headers.unwrap_or_default();
        assert!(headers.get("traceparent").is_none(), "{}: {headers:?}", message.subject);
        seen += 1;
        message.subject.ends_with(".completed").then_some(())
    })
    .await;
    assert!(seen > 4, "{seen}");
}
