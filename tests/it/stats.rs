//! How the installation does, as it is told over HTTP and over NATS.

use std::time::Duration;

use serde_json::{Value, json};
use stepcast_sdnext_sim::Fault;
use stepcast_shared::messages::{Stats, StatsWindow};
use stepcast_shared::rpc;
use stepcast_tests::client::Http;
use stepcast_tests::database::Database;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::until;

#[tokio::test]
async fn what_ended_is_counted_on_sqlite() {
    what_ended_is_counted(&Database::Sqlite).await;
}

#[tokio::test]
async fn what_ended_is_counted_on_postgres() {
    if let Some(database) = Database::postgres().await {
        what_ended_is_counted(&database).await;
    }
}

async fn stats(http: &Http, window: &str) -> Value {
    let answer = http.get(&format!("/generation/stats?window={window}")).await;
    assert_eq!(answer.status, 200, "{}", answer.json);
    answer.json
}

/// Two jobs that complete, the second at its second attempt; one that fails, one that is cancelled while it waits, and
/// one that waits on.
async fn what_ended_is_counted(database: &Database) {
    let sim = Sim::start(Duration::from_millis(100)).await.unwrap();
    let stack = Stack::start_on(database.setup(), &[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let nothing = stats(&http, "5m").await;
    assert_eq!(nothing["overall"]["jobs_completed"], 0, "{nothing}");
    assert_eq!(nothing["overall"]["failure_ratio"], Value::Null, "{nothing}");
    assert_eq!(nothing["backends"][0]["id"], "gpu", "one without jobs is listed: {nothing}");

    let small = json!({"prompt": "counted", "steps": 4, "n_iter": 2, "width": 256, "height": 256});
    let with = |more: Value| {
        let mut body = small.clone();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    assert_eq!(http.ended(&http.submit(&small).await).await["status"], "completed");
    sim.handle.arm(Fault::OutOfMemoryBeforeFirstStep, 1);
    let again = http.ended(&http.submit(&small).await).await;
    assert_eq!((&again["status"], &again["attempt"]), (&json!("completed"), &json!(2)), "{again}");
    let failed = http.ended(&http.submit(&with(json!({"sampler_name": "NoSuchSampler"}))).await).await;
    assert_eq!(failed["status"], "failed", "{failed}");
    let elsewhere = with(json!({"pool": "elsewhere", "priority": "high"}));
    let (cancelled, _waits) = (http.submit(&elsewhere).await, http.submit(&elsewhere).await);
    http.post(&format!("/generation/jobs/{cancelled}/cancel"), &json!(null)).await;
    http.ended(&cancelled).await;

    let told = until("all of it is counted", async || {
        let told = stats(&http, "5m").await;
        let idle = told["backends"][0]["state"] == "idle";
        (idle && told["overall"]["jobs_cancelled"] == 1 && told["queue"]["pending"] == 1).then_some(told)
    })
    .await;
    let (overall, gpu) = (&told["overall"], &told["backends"][0]);
    assert_eq!((&overall["jobs_accepted"], &told["window_seconds"]), (&json!(5), &json!(300)), "{told}");
    for figures in [overall, gpu] {
        let expected = json!({"jobs_completed": 2, "jobs_failed": 1, "retries": 1, "images_completed": 4,
            "steps_completed": 16, "failure_ratio": 0.3333, "jobs_per_minute": 0.4, "images_per_minute": 0.8,
            "counted_seconds": 300.0,
            "errors": [{"code": "out_of_memory", "jobs_failed": 0, "retries": 1},
                {"code": "rejected", "jobs_failed": 1, "retries": 0}]});
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&figures[name], value, "{name}: {told}");
        }
        // Sampling alone takes 8 steps of 25 ms, and a second attempt waits a second for its turn.
        let render = &figures["render_seconds"];
        assert!(render["p50"].as_f64().is_some_and(|seconds| (0.2..60.0).contains(&seconds)), "{told}");
        assert!(render["max"].as_f64() >= render["p95"].as_f64(), "{told}");
        assert!(figures["wait_seconds"]["mean"].as_f64().is_some_and(|seconds| seconds < 60.0), "{told}");
        let speed = figures["steps_per_second"].as_f64().unwrap();
        let utilisation = figures["utilisation_ratio"].as_f64().unwrap();
        assert!(speed > 0.0 && speed <= 40.0, "{told}");
        assert!(utilisation > 0.4 / 300.0 && utilisation < 1.0, "{told}");
    }
    assert_eq!((&overall["jobs_cancelled"], &gpu["jobs_cancelled"]), (&json!(1), &json!(0)), "{told}");
    let depth = &told["queue"]["by_pool_and_priority"][0];
    assert_eq!(
        (&depth["pool"], &depth["priority"], &depth["pending"], &depth["running"]),
        (&json!("elsewhere"), &json!("high"), &json!(1), &json!(0)),
        "{told}"
    );
    assert!(depth["oldest_pending_seconds"].as_f64().is_some_and(|age| (0.0..60.0).contains(&age)), "{told}");

    // Whoever is asked, and however, it is the same.
    let day = stats(&http, "24h").await;
    assert_eq!(day["overall"]["jobs_per_minute"], json!(0.0014), "{day}");
    assert_eq!(day["throughput"], told["throughput"], "{day}");
    assert_eq!(day["throughput"][2]["images_completed"], 4, "{day}");
    let client = async_nats::connect(stack.nats.url()).await.unwrap();
    let request = rpc::StatsRequest { window: StatsWindow::FiveMinutes };
    let over_nats: Stats = rpc::call(&client, rpc::STATS, &request, Duration::from_secs(10)).await.unwrap();
    assert_eq!(serde_json::to_value(&over_nats.overall).unwrap()["errors"], overall["errors"]);
    assert_eq!(serde_json::to_value(&over_nats.queue).unwrap()["pending"], told["queue"]["pending"]);
}

#[tokio::test]
async fn a_window_that_is_not_offered_is_refused_with_those_that_are() {
    let stack = Stack::start(&[]).await.unwrap();
    for window in ["2h", "", "1H", "60"] {
        let answer = stack.http().get(&format!("/generation/stats?window={window}")).await;
        assert_eq!(answer.status, 400, "{window}: {}", answer.json);
        assert!(
            answer.json["detail"].as_str().is_some_and(|detail| detail.contains("5m, 15m, 1h, 6h, 24h, 7d")),
            "{}",
            answer.json
        );
    }
    assert_eq!(stack.http().get("/generation/stats").await.json["window"], "1h");
}
