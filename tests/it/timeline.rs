//! When a job got where, as its object says.

use std::time::Duration;

use serde_json::{Value, json};
use stepcast_sdnext_sim::Fault;
use stepcast_shared::messages::Timestamp;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;

/// Clocks of one machine differ by what two reads of it are apart, and the stream's has milliseconds.
const CLOCKS: f64 = 0.002;

fn time(timeline: &Value, moment: &str) -> f64 {
    let Ok(Timestamp(time)) = serde_json::from_value(timeline[moment].clone()) else {
        panic!("{moment}: {timeline}")
    };
    time.timestamp_micros() as f64 / 1e6
}

/// These moments are all there and follow each other.
fn in_order(timeline: &Value, moments: &[&str]) {
    for pair in moments.windows(2) {
        assert!(
            time(timeline, pair[0]) <= time(timeline, pair[1]) + CLOCKS,
            "{} after {}: {timeline}",
            pair[0],
            pair[1]
        );
    }
}

#[tokio::test]
async fn a_job_says_when_it_got_where_and_its_event_says_the_same() {
    let sim = Sim::start(Duration::from_millis(1_200)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    let mut watcher = stack.watcher().await.unwrap();
    watcher.subscribe(None).await;
    let body = json!({"prompt": "slow enough to be seen", "steps": 4, "width": 512, "height": 512});
    let id = http.submit(&body).await;
    let told = watcher.ended(&id).await["data"].clone();
    let job = http.ended(&id).await;
    let timeline = &job["timeline"];
    let whole = ["queued", "dispatched", "posted", "first_step", "sampled", "rendered", "stored", "recorded"];
    in_order(timeline, &whole);
    in_order(timeline, &["queued", "started", "posted"]);
    assert_eq!(timeline["model_loaded"], Value::Null, "nothing was loaded: {timeline}");
    assert_eq!(timeline["earlier"], json!([]));
    assert_eq!((&timeline["queued"], &timeline["recorded"]), (&job["created_at"], &job["finished_at"]));
    // A step takes 1.2 s, and polls come every quarter of a second.
    let resolution = timeline["resolution_seconds"].as_f64().unwrap();
    assert!((0.2..1.0).contains(&resolution), "{timeline}");
    let to_first = time(timeline, "first_step") - time(timeline, "posted");
    assert!((1.1..3.0).contains(&to_first), "{to_first} s to the first step: {timeline}");
    for (moment, value) in told["timeline"].as_object().unwrap() {
        assert_eq!(&timeline[moment], value, "{moment}");
    }
}

#[tokio::test]
async fn each_attempt_has_its_moments_and_the_load_of_a_checkpoint_is_one() {
    let sim = Sim::start(Duration::from_millis(400)).await.unwrap();
    let stack = Stack::start(&[("gpu", sim.url())]).await.unwrap();
    let http = stack.http();
    sim.handle.arm(Fault::OutOfMemoryBeforeFirstStep, 1);
    let job = http.ended(&http.submit(&json!({"prompt": "again", "steps": 4})).await).await;
    assert_eq!((&job["status"], &job["attempt"]), (&json!("completed"), &json!(2)), "{job}");
    let timeline = &job["timeline"];
    let earlier = timeline["earlier"].as_array().unwrap();
    assert_eq!(earlier.len(), 1, "{timeline}");
    let first = &earlier[0];
    assert_eq!(
        (&first["attempt"], &first["backend"], &first["code"]),
        (&json!(1), &json!("gpu"), &json!("out_of_memory"))
    );
    in_order(first, &["dispatched", "posted", "rendered", "recorded"]);
    assert_eq!((&first["stored"], &first["sampled"]), (&Value::Null, &Value::Null), "{first}");
    in_order(timeline, &["dispatched", "posted", "first_step", "sampled", "rendered", "stored", "recorded"]);
    assert!(time(first, "recorded") <= time(timeline, "dispatched") + CLOCKS, "{timeline}");

    let other = json!({"prompt": "with another checkpoint", "steps": 4, "model": "Diffusers/tiny-sd-b"});
    let job = http.ended(&http.submit(&other).await).await;
    in_order(&job["timeline"], &["posted", "model_loaded", "first_step"]);
    let loading = time(&job["timeline"], "model_loaded") - time(&job["timeline"], "posted");
    assert!((1.1..10.0).contains(&loading), "a load takes 1.2 s, not {loading}: {job}");
}

#[tokio::test]
async fn a_job_that_waits_or_was_never_begun_says_only_what_was() {
    let stack = Stack::start(&[]).await.unwrap();
    let http = stack.http();
    let id = http.submit(&json!({"prompt": "nobody takes it"})).await;
    let waiting = http.job(&id).await["timeline"].clone();
    http.post(&format!("/generation/jobs/{id}/cancel"), &json!(null)).await;
    let ended = http.ended(&id).await["timeline"].clone();
    for (timeline, known) in [(&waiting, &["queued"][..]), (&ended, &["queued", "recorded"])] {
        for (moment, value) in timeline.as_object().unwrap() {
            let expected = known.contains(&moment.as_str()) || moment == "earlier";
            assert_eq!(!value.is_null(), expected, "{moment}: {timeline}");
        }
    }
}
