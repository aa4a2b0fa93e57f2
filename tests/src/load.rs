//! Jobs as clients send them while much goes wrong: until they are accepted, and never twice.

use std::time::Duration;

use futures_util::future::join_all;
use rand::Rng as _;
use rand::rngs::StdRng;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::{Answer, Http};

/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Pause before a request is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(300);

/// A job to be sent.
#[derive(Clone, Debug)]
pub struct Order {
    /// When, from the beginning of the run.
    sent_at: Duration,
    /// How long after its accept it is cancelled, if it is.
    cancelled_after: Option<Duration>,
    pub body: Value,
}

/// A job that was accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub id: String,
    pub body: Value,
    /// Whether somebody was told that it was cancelled before it began.
    pub told_cancelled: bool,
    /// Whether a cancel was asked for at all.
    pub cancelled: bool,
}

impl Order {
    fn draw(rng: &mut StdRng, number: usize, within: Duration) -> Self {
        let side = [128, 192][rng.random_range(0..2)];
        let priority = ["low", "normal", "high"][rng.random_range(0..3)];
        Self {
            sent_at: within.mul_f64(rng.random_range(0.0..1.0)),
            cancelled_after: rng
                .random_bool(0.1)
                .then(|| Duration::from_secs_f64(rng.random_range(0.0..6.0))),
            body: json!({
                "prompt": format!("job {number}"),
                "steps": rng.random_range(4..10),
                "width": side,
                "height": 128,
                "n_iter": rng.random_range(1..3),
                "batch_size": rng.random_range(1..3),
                "max_attempts": rng.random_range(3..6),
                "priority": priority,
            }),
        }
    }
}

/// So many jobs, sent at moments drawn from `within`.
pub fn draw(rng: &mut StdRng, jobs: usize, within: Duration) -> Vec<Order> {
    draw_from(rng, 0, jobs, within)
}

/// As [`draw`], for who has drawn so many before: no two jobs are alike.
pub fn draw_from(rng: &mut StdRng, before: usize, jobs: usize, within: Duration) -> Vec<Order> {
    (before..before + jobs).map(|number| Order::draw(rng, number, within)).collect()
}

/// Sends every job at its time until it is accepted, cancels those that are to be, and returns them all.
///
/// `ids` learns of each as it is accepted.
pub async fn send(http: &Http, orders: Vec<Order>, ids: &watch::Sender<Vec<String>>) -> Vec<Accepted> {
    send_to(std::slice::from_ref(http), orders, ids).await
}

/// As [`send`], to several replicas: whoever fails one request, the next one gets it.
pub async fn send_to(apis: &[Http], orders: Vec<Order>, ids: &watch::Sender<Vec<String>>) -> Vec<Accepted> {
    let begun = Instant::now();
    let sending = orders.into_iter().enumerate().map(|(number, order)| async move {
        sleep_until(begun + order.sent_at).await;
        let id = submit(apis, number, &order.body).await;
        ids.send_modify(|ids| ids.push(id.clone()));
        let mut told_cancelled = false;
        if let Some(after) = order.cancelled_after {
            sleep(after).await;
            told_cancelled = cancel(apis, number, &id).await;
        }
        Accepted { id, body: order.body, told_cancelled, cancelled: order.cancelled_after.is_some() }
    });
    join_all(sending).await
}

async fn submit(apis: &[Http], first: usize, body: &Value) -> String {
    let key = body["prompt"].as_str().expect("a job has a prompt").replace(' ', "-");
    let answer = again(apis, first, "/generation/queue-generation", body, &key).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{}", answer.json);
    answer.json["job_id"].as_str().expect("an accepted job has an id").to_owned()
}

/// True if the answer was that the job is cancelled already.
async fn cancel(apis: &[Http], first: usize, id: &str) -> bool {
    let path = format!("/generation/jobs/{id}/cancel");
    let answer = again(apis, first, &path, &json!({}), id).await;
    assert!(matches!(answer.status, StatusCode::OK | StatusCode::CONFLICT), "{}", answer.json);
    answer.status == StatusCode::OK && answer.json["status"] == "cancelled"
}

/// Posts until it is answered by anything but a trouble of the server's own, to each replica in turn from `first` on.
async fn again(apis: &[Http], first: usize, path: &str, body: &Value, key: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    let mut turns = apis.iter().cycle().skip(first % apis.len());
    loop {
        let http = turns.next().expect("there is at least one replica");
        let sent = http.try_send(Method::POST, path, body.to_string().into(), &headers);
        match timeout(ANSWER, sent).await {
            Ok(Ok(answer)) if !answer.status.is_server_error() => return answer,
            _ => sleep(AGAIN_AFTER).await,
        }
    }
}
