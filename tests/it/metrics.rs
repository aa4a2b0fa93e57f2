//! What Prometheus reads from each service after jobs have run, and that the deployment asks for nothing else.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use stepcast_sdnext_sim::Fault;
use stepcast_tests::client::Http;
use stepcast_tests::scrape::{Scrape, whole};
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;

/// Metrics with labels that are written only once something is wrong, which this scenario does not bring about.
const ONLY_ON_FAULTS: [&str; 2] =
    ["stepcast_gateway_refused_total", "stepcast_gateway_incomplete_snapshots_total"];

/// What each service shows.
struct Scrapes {
    api: Scrape,
    gateway: Scrape,
    poller: Scrape,
}

impl Scrapes {
    async fn take(stack: &Stack, poller: &Http) -> Self {
        let gateway = Http::to(stack.gateway_address());
        Self {
            api: Scrape::of(&stack.http()).await,
            gateway: Scrape::of(&gateway).await,
            poller: Scrape::of(poller).await,
        }
    }

    fn names(&self) -> BTreeSet<String> {
        [&self.api, &self.gateway, &self.poller].into_iter().flat_map(Scrape::names).collect()
    }
}

/// Three jobs that complete, one of them at its second attempt and one with another checkpoint, and one that fails.
async fn run_jobs(stack: &Stack, sim: &Sim) {
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.send(&json!({"type": "subscribe", "job_ids": null, "topics": ["stats", "backends"]})).await;
    watcher.wait("statistics", |message| message["type"] == "stats").await;
    watcher.send(&json!({"type": "subscribe", "job_ids": [], "since": "2026-01-01T00:00:00Z"})).await;
    watcher.send(&json!({"type": "nonsense"})).await;
    watcher.wait("an error", |message| message["type"] == "error").await;
    // So many steps that some of them are seen however busy the machine is.
    let small = json!({"prompt": "measured", "steps": 40, "width": 256, "height": 256});
    http.ended(&http.submit(&small).await).await;
    sim.handle.arm(Fault::OutOfMemoryBeforeFirstStep, 1);
    http.ended(&http.submit(&small).await).await;
    let mut other = small.clone();
    other["model"] = json!("Diffusers/tiny-sd-b");
    http.ended(&http.submit(&other).await).await;
    let mut wrong = small.clone();
    wrong["sampler_name"] = json!("NoSuchSampler");
    http.ended(&http.submit(&wrong).await).await;
    let mut leaving = stack.watcher().await.unwrap();
    leaving.try_send(tokio_tungstenite::tungstenite::Message::Close(None)).await;
    leaving.closed().await;
}

#[tokio::test]
async fn every_service_shows_what_it_did() {
    let sim = Sim::start(Duration::from_millis(200)).await.unwrap();
    let mut stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let poller = Http::to(&stack.poller.address().await.unwrap());
    run_jobs(&stack, &sim).await;

    let read = until("the gauges were looked at since", async || {
        let read = Scrapes::take(&stack, &poller).await;
        let looked = read.api.sum("stepcast_projector_pending_events", &[]) == Some(0.0)
            && read.api.sum("stepcast_jobs", &[]) == Some(0.0)
            && read.api.sum("stepcast_outbox_rows", &[]) == Some(0.0)
            && read.api.sum("stepcast_projection_seconds_count", &[]) >= Some(13.0);
        looked.then_some(read)
    })
    .await;
    let Scrapes { api, gateway, poller } = &read;
    for (scrape, name, labels, expected) in [
        (api, "stepcast_jobs_accepted_total", &[][..], 4.0),
        (api, "stepcast_jobs_ended_total", &[("status", "completed"), ("code", "none")], 3.0),
        (api, "stepcast_jobs_ended_total", &[("status", "failed"), ("code", "rejected")], 1.0),
        (api, "stepcast_attempts_retried_total", &[("code", "out_of_memory")], 1.0),
        (api, "stepcast_job_seconds_count", &[("status", "completed")], 3.0),
        (api, "stepcast_job_render_seconds_count", &[("pool", "default")], 3.0),
        (api, "stepcast_events_dead_total", &[], 0.0),
        (poller, "stepcast_attempts_total", &[("backend", "gpu"), ("outcome", "completed")], 3.0),
        (poller, "stepcast_attempts_total", &[("backend", "gpu"), ("outcome", "retrying")], 1.0),
        (poller, "stepcast_attempt_failures_total", &[("backend", "gpu"), ("code", "rejected")], 1.0),
        (poller, "stepcast_model_swaps_total", &[("backend", "gpu")], 1.0),
        (poller, "stepcast_stage_seconds_count", &[("stage", "storing")], 3.0),
        (poller, "stepcast_backend_state", &[("backend", "gpu")], 1.0),
        (gateway, "stepcast_gateway_topic_subscriptions", &[("topic", "stats")], 0.0),
        (gateway, "stepcast_gateway_errors_total", &[("code", "unknown_type")], 1.0),
    ] {
        assert_eq!(scrape.sum(name, labels), Some(expected), "{name} {labels:?}");
    }
    for (scrape, name, labels, least, most) in [
        // One is rendered after the other, so the last has waited for nobody either.
        (api, "stepcast_job_wait_seconds_sum", &[("priority", "normal")][..], 0.001, 60.0),
        (api, "stepcast_job_wait_seconds_count", &[], 3.0, 4.0),
        (api, "stepcast_job_render_seconds_sum", &[], 1.0, 120.0),
        (
            api,
            "stepcast_http_request_seconds_count",
            &[("route", "/generation/queue-generation"), ("status", "202")],
            4.0,
            4.0,
        ),
        (api, "stepcast_rpc_handled_seconds_count", &[("name", "claim"), ("outcome", "ok")], 5.0, 1e6),
        (poller, "stepcast_rpc_seconds_count", &[("name", "claim"), ("outcome", "ok")], 5.0, 1e6),
        (poller, "stepcast_rpc_seconds_count", &[("name", "renew"), ("outcome", "ok")], 1.0, 1e6),
        (poller, "stepcast_attempt_seconds_sum", &[("outcome", "completed")], 1.0, 120.0),
        (poller, "stepcast_stage_seconds_sum", &[("stage", "sampling")], 0.2, 120.0),
        (poller, "stepcast_poll_seconds_count", &[("backend", "gpu")], 3.0, 1e4),
        (poller, "stepcast_poll_seconds_sum", &[], 0.0001, 60.0),
        (gateway, "stepcast_rpc_seconds_count", &[("name", "stats"), ("outcome", "ok")], 1.0, 1e4),
        (gateway, "stepcast_gateway_frames_sent_total", &[], 10.0, 1e6),
        (gateway, "stepcast_gateway_fan_out_seconds_count", &[], 10.0, 1e6),
    ] {
        let value = scrape.sum(name, labels).unwrap_or(f64::NAN);
        assert!((least..=most).contains(&value), "{name} {labels:?} is {value}");
    }
    // Whatever is measured can be added up over processes: buckets, and no quantiles.
    for sample in [api, gateway, poller].into_iter().flat_map(Scrape::samples) {
        assert!(!sample.labels.contains_key("quantile"), "{sample:?}");
        assert!(sample.value.is_finite(), "{sample:?}");
    }
    asked_for(&read.names());
}

/// Every metric that the dashboard, the alerts and the autoscaler name is there.
fn asked_for(shown: &BTreeSet<String>) {
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    let mut asked = BTreeSet::new();
    for file in [
        "observability/alerts.yml",
        "observability/grafana/dashboards/stepcast.json",
        "kubernetes/prometheus-adapter.yaml",
        "kubernetes/gateway.yaml",
    ] {
        let text = std::fs::read_to_string(deploy.join(file)).unwrap();
        let words = text.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '_'));
        let names: BTreeSet<String> =
            words.filter(|word| word.starts_with("stepcast_")).map(|word| whole(word).to_owned()).collect();
        assert!(!names.is_empty(), "{file}");
        asked.extend(names);
    }
    let missing: Vec<&String> =
        asked.difference(shown).filter(|name| !ONLY_ON_FAULTS.contains(&name.as_str())).collect();
    assert!(missing.is_empty(), "asked for and not written: {missing:?}");
}
