//! What scenarios of outages share: small jobs, and what an answer and a job must be like.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};
use stepcast_tests::check;
use stepcast_tests::client::{Answer, Http};
use stepcast_tests::database::number;
use stepcast_tests::process::Process;
use stepcast_tests::sim::Sim;
use stepcast_tests::wait::until;

pub const SUBMIT: &str = "/generation/queue-generation";

/// Bound on an answer while something that it needs does not answer; ten seconds and less are usual.
pub const ANSWERED_WITHIN: Duration = Duration::from_secs(25);

pub fn small(prompt: &str) -> Value {
    json!({"prompt": prompt, "steps": 2, "width": 64, "height": 64})
}

pub fn with_priority(body: &Value, priority: &str) -> Value {
    let mut body = body.clone();
    body["priority"] = json!(priority);
    body
}

pub fn picture() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 64, 64);
    encoder.set_color(png::ColorType::Rgb);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&[40; 64 * 64 * 3])).unwrap();
    bytes
}

pub fn from_picture(prompt: &str) -> Value {
    let mut body = small(prompt);
    body["init_images"] = json!([STANDARD.encode(picture())]);
    body["denoising_strength"] = json!(0.5);
    body
}

pub async fn keyed(http: &Http, key: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    http.send(Method::POST, SUBMIT, body.to_string().into(), &headers).await
}

pub async fn upload(http: &Http) -> Answer {
    http.send(Method::POST, "/generation/inputs", picture().into(), &[("content-type", "image/png")]).await
}

/// The answer says that it is not the client's fault, of what it is, and when to come back.
pub fn assert_try_later(answer: &Answer, kind: &str) {
    assert_eq!(answer.status, 503, "{}", answer.json);
    assert_eq!(answer.json["type"], format!("/problems/{kind}"), "{}", answer.json);
    let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
}

pub async fn rows(database_url: &str, table: &str) -> i64 {
    number(database_url, &format!("SELECT CAST(COUNT(*) AS BIGINT) FROM {table}")).await
}

pub async fn assert_image(http: &Http, job: &Value) {
    assert_eq!(job["status"], "completed", "{job}");
    let image = http.get(job["images"][0].as_str().unwrap()).await;
    assert_eq!(check::decoded_size(&image.bytes), (64, 64));
}

/// Lets a hanging render go on to its end; it may be on its way to where it hangs.
pub async fn let_go(sim: &Sim) {
    until("the render ends", async || {
        sim.handle.release();
        sim.truth().running.is_none().then_some(())
    })
    .await;
}

/// A word of the process's log.
pub async fn says(process: &mut Process, word: &str) {
    process.line(|line| line.contains(word).then_some(())).await.unwrap();
}
