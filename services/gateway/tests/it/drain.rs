//! A gateway that stops: probes and newcomers are sent elsewhere, and whoever is there is served to the last.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::http::StatusCode;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::client::WsClient;
use crate::process::get;
use crate::stage::{PATIENCE, Stage};
use crate::tap::Tap;

/// Far more than the sockets hold for a client that does not read.
const BACKLOG: usize = 600;
/// So many goodbyes take a fifth of a second.
const CROWD: usize = 400;

#[tokio::test]
async fn newcomers_are_sent_elsewhere_and_whoever_is_behind_gets_everything_before_the_goodbye() {
    let stage = Stage::new().await;
    let mut slow = WsClient::connect_narrow(stage.address).await;
    slow.expect("connected").await;
    slow.say(&json!({"type": "subscribe", "job_ids": null})).await;
    slow.expect("subscription_confirmed").await;
    let mut events = Tap::events(stage.address, "", None, false).await.unwrap();
    assert_eq!(events.next().await.unwrap().message["type"], "subscription_confirmed");
    assert!(get(stage.address, "/health/ready").await.starts_with("HTTP/1.1 200"));
    let mut told = Vec::new();
    for _ in 0..BACKLOG {
        let mut job = stage.job();
        job.queued().await;
        assert_eq!(events.next().await.unwrap().message["data"]["job_id"], json!(job.id));
        told.push(job.id);
    }

    stage.supervisor.stop();
    let ready = async { while !get(stage.address, "/health/ready").await.starts_with("HTTP/1.1 503") {} };
    timeout(PATIENCE, ready).await.expect("readiness fails");
    assert_eq!(WsClient::status_for(stage.address, None).await, StatusCode::SERVICE_UNAVAILABLE);
    let refused = get(stage.address, "/sse/progress").await;
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("/problems/stopping"), "{refused}");
    assert_eq!(events.next().await.unwrap().message["type"], "going_away");
    assert!(events.next().await.is_none(), "nothing follows the goodbye");

    for id in told {
        slow.expect_of("generation_queued", id).await;
    }
    slow.expect("going_away").await;
    assert_eq!(slow.close_code().await, CloseCode::Away);
    drop((slow, events));
    timeout(PATIENCE, stage.supervisor.finish()).await.expect("an end in time").expect("no task failed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everybody_hears_everything_up_to_the_own_goodbye() {
    let stage = Stage::new().await;
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let mut client = stage.watch_all().await;
        crowd.spawn(async move {
            let mut heard = Vec::new();
            loop {
                let message: Value = serde_json::from_str(&client.text().await).unwrap();
                if message["type"] == "going_away" {
                    assert_eq!(client.close_code().await, CloseCode::Away);
                    return heard;
                }
                heard.push(message["data"]["job_id"].as_str().unwrap().to_owned());
            }
        });
    }
    let mut published = HashMap::new();
    let mut heard = Vec::new();
    let mut before = 0;
    while heard.len() < CROWD {
        if published.len() == 20 {
            before = published.len();
            stage.supervisor.stop();
        }
        let mut job = stage.job();
        job.queued().await;
        published.insert(job.id.to_string(), published.len());
        while let Some(client) = crowd.try_join_next() {
            heard.push(client.unwrap());
        }
    }
    for client in &heard {
        let in_order = client.iter().map(|id| published[id]).eq(0..client.len());
        assert!(in_order, "something was left out or out of order");
    }
    let served = heard.iter().filter(|client| client.len() > before).count();
    assert!(served > 0, "nobody heard anything once it stopped");
}
