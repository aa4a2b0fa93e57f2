//! Everybody comes back at once.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use stepcast_shared::config::NatsConfig;
use stepcast_shared::ids::JobId;
use stepcast_shared::nats;
use stepcast_shared::subjects::EVENTS_STREAM;
use tokio::time::{sleep, timeout};

use crate::chaos::variable;
use crate::jobs::Job;
use crate::nats_server::NatsServer;
use crate::process::{address, gateway};
use crate::tap::Tap;

/// Clients in a run of every day, and in a long one.
const SOME: usize = 500;
const MANY: usize = 10_000;
/// Jobs that they watch, each by itself.
const JOBS: usize = 20;
/// Longest wait until the last is served, ten times what it takes on a slow machine.
const SERVED: Duration = Duration::from_mins(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_comes_back_at_once_is_served_and_costs_the_stream_no_consumer() {
    come_back(SOME).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_ten_thousand_come_back_at_once() {
    if variable("STEPCAST_SOAK").as_deref() == Some("1") {
        come_back(MANY).await;
    }
}

async fn come_back(crowd: usize) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let server = NatsServer::start().await;
    // A process of its own, or one would need the sockets of both ends.
    let arguments =
        ["--listen", "127.0.0.1:0", "--gateway-max-connections", "20000", "--nats-url", &server.url()];
    let mut process = gateway(&arguments);
    let address = address(&mut process).await;
    let client = nats::connect("test", &NatsConfig::at(server.url())).await.unwrap();
    let context = nats::prepare(&client).await.unwrap();
    let mut jobs: Vec<Job> = (0..JOBS).map(|_| Job::new(client.clone(), context.clone())).collect();
    for job in &mut jobs {
        job.queued().await;
    }
    let watched = |number: usize| jobs[number % JOBS].id;
    let first = (0..crowd).map(|number| visit(address, watched(number), None, &["generation_queued"]));
    let first = timeout(SERVED, join_all(first)).await.expect("all are served");
    let since: Vec<Value> = first
        .into_iter()
        .map(|(tap, time)| {
            drop(tap);
            time
        })
        .collect();

    for job in &mut jobs {
        job.started().await;
        job.completed().await;
    }
    let watched = |number: usize| jobs[number % JOBS].id;
    let kinds = ["generation_queued", "generation_started", "generation_complete"];
    let again = since.iter().enumerate();
    let again = again.map(|(number, since)| visit(address, watched(number), Some(since), &kinds));
    let again = timeout(SERVED, join_all(again)).await.expect("all are served again");

    let request = format!("$JS.API.CONSUMER.NAMES.{EVENTS_STREAM}");
    let answer = client.request(request, "".into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!((&answer["total"], again.len()), (&json!(0), crowd), "{answer}");
}

/// Subscribes to a job and reads what is told of it at first; returns the connection and the time of the last message.
async fn visit(address: SocketAddr, id: JobId, since: Option<&Value>, kinds: &[&str]) -> (Tap, Value) {
    let mut tap = loop {
        if let Some(tap) = Tap::socket(address, false).await {
            break tap;
        }
        // As any client would that finds no room.
        sleep(Duration::from_millis(rand::random_range(50..500))).await;
    };
    tap.say(&json!({"type": "subscribe", "job_ids": [id], "since": since})).await;
    let greeting = tap.next().await.expect("a greeting").message;
    assert_eq!(greeting["type"], "connected");
    let confirmed = tap.next().await.expect("a confirmation").message;
    assert_eq!(confirmed["type"], "subscription_confirmed");
    assert_eq!(confirmed["data"]["recovered"], since.map_or(Value::Null, |_| json!(true)));
    let mut time = Value::Null;
    for kind in kinds {
        let message = tap.next().await.expect("an event").message;
        assert_eq!((&message["type"], &message["data"]["job_id"]), (&json!(kind), &json!(id)));
        time = message["timestamp"].clone();
    }
    (tap, time)
}
