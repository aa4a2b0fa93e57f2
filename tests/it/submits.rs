//! Many submits while the broker is killed twice: what was acknowledged exists and runs once, what was not left nothing.
//!
//! `STEPCAST_SOAK=1` sends 10,000.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::json;
use stepcast_sdnext_sim::Config;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats;
use stepcast_tests::database::number;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::Stack;
use stepcast_tests::wait::{until, until_after};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::recorded;

const CLIENTS: usize = 16;
const SIMS: usize = 4;
/// How long the broker is away.
const AWAY: Duration = Duration::from_secs(1);
/// Longest wait for all jobs to end: far more than any machine needs for 10,000.
const ALL_ENDED: Duration = Duration::from_mins(10);

#[tokio::test]
async fn three_hundred_submits_outlive_two_deaths_of_the_broker() {
    outlive(300).await;
}

#[tokio::test]
async fn soak_ten_thousand_submits_outlive_two_deaths_of_the_broker() {
    if std::env::var_os("STEPCAST_SOAK").is_some_and(|value| value == "1") {
        outlive(10_000).await;
    }
}

async fn outlive(submits: usize) {
    let quick = || Config {
        step_time: Duration::ZERO,
        decode_time: Duration::ZERO,
        time_scale: 0.0,
        rate_limit: 0,
        ..Config::default()
    };
    let mut sims = Vec::new();
    for _ in 0..SIMS {
        sims.push(Sim::with(quick()).await.unwrap());
    }
    let names = ["one", "two", "three", "four"];
    let backends: Vec<_> = names.into_iter().zip(&sims).map(|(name, sim)| (name, sim.url())).collect();
    let mut stack = Stack::start(&backends).await.unwrap();

    let answered = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (http, answered) = (stack.http(), answered.clone());
        clients.spawn(async move {
            let mut sent = Vec::new();
            for n in (client..submits).step_by(CLIENTS) {
                let prompt = format!("submit {n}");
                let body = json!({"prompt": prompt, "steps": 1, "width": 64, "height": 64}).to_string();
                let headers = [("content-type", "application/json")];
                let answer =
                    http.try_send(Method::POST, "/generation/queue-generation", body.into(), &headers).await;
                let id = answer.ok().filter(|answer| answer.status == StatusCode::ACCEPTED).map(|answer| {
                    answer.json["job_id"].as_str().expect("an accepted job has an id").to_owned()
                });
                sent.push((prompt, id));
                answered.fetch_add(1, Ordering::Relaxed);
            }
            sent
        });
    }
    for share in [4, 2] {
        until_after(ALL_ENDED, "a share of the submits is answered", async || {
            (answered.load(Ordering::Relaxed) >= submits / share).then_some(())
        })
        .await;
        stack.nats.process().signal(Signal::KILL);
        stack.nats.process().end().await;
        sleep(AWAY).await;
        stack.nats.restart().await.unwrap();
    }
    let sent: Vec<_> = clients.join_all().await.into_iter().flatten().collect();
    assert_eq!(sent.len(), submits);
    let accepted: BTreeMap<&String, &String> =
        sent.iter().filter_map(|(prompt, id)| Some((id.as_ref()?, prompt))).collect();
    assert!(accepted.len() > submits / 2, "the api accepts while the broker is away: {}", accepted.len());

    let count = async |what: &str| {
        number(&stack.database_url(), &format!("SELECT CAST(COUNT(*) AS BIGINT) FROM {what}")).await
    };
    let expected = i64::try_from(accepted.len()).unwrap();
    until_after(ALL_ENDED, "every accepted job has ended", async || {
        (count("jobs WHERE status = 'completed'").await >= expected).then_some(())
    })
    .await;
    assert_eq!(count("jobs").await, expected, "what was refused left nothing");
    until("the outbox is empty", async || (count("outbox").await == 0).then_some(())).await;

    let mut renders: BTreeMap<String, u32> = BTreeMap::new();
    for sim in &sims {
        for render in sim.truth().finished {
            *renders.entry(render.prompt).or_default() += 1;
        }
    }
    for (id, prompt) in &accepted {
        assert_eq!(renders.remove(*prompt), Some(1), "{id}, {prompt}, was rendered once");
    }
    assert!(renders.is_empty(), "nothing else was rendered: {renders:?}");
    let client = nats::connect("test", &NatsConfig::at(stack.nats.url())).await.unwrap();
    recorded::each_job_went_straight_through(&client, accepted.into_keys()).await;
}
