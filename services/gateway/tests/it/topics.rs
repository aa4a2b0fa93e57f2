//! What is watched beside jobs.

use std::time::Duration;

use serde_json::{Value, json};
use stepcast_shared::messages::{BackendCondition, BackendState, Timestamp};
use stepcast_shared::subjects;
use tokio::time::sleep;

use crate::client::WsClient;
use crate::events::Events;
use crate::stage::Stage;

/// A poller that says what its backend is doing.
struct Poller<'a> {
    stage: &'a Stage,
    state: BackendState,
}

impl<'a> Poller<'a> {
    fn of(stage: &'a Stage, id: &str) -> Self {
        let state = BackendState {
            id: id.parse().unwrap(),
            state: BackendCondition::Idle,
            url: "http://127.0.0.1:7860/".to_owned(),
            dialect: "sdnext".to_owned(),
            pools: vec!["default".parse().unwrap()],
            model: None,
            job_id: None,
            foreign: None,
            message: None,
            poller: "poller".to_owned(),
            updated_at: Timestamp::now(),
        };
        Self { stage, state }
    }

    /// Says it so that it is kept, and returns what was said.
    async fn says(&mut self, condition: BackendCondition) -> Value {
        self.state.state = condition;
        self.state.updated_at = Timestamp::now();
        let payload = serde_json::to_vec(&self.state).unwrap();
        let subject = subjects::backend(&self.state.id);
        self.stage.context.publish(subject, payload.into()).await.unwrap().await.unwrap();
        serde_json::to_value(&self.state).unwrap()
    }
}

async fn subscribe(client: &mut WsClient, message: Value) -> Value {
    client.say(&message).await;
    client.expect("subscription_confirmed").await
}

/// Reads on until this comes, past what comes by itself every two seconds.
async fn until(client: &mut WsClient, kind: &str, fits: impl Fn(&Value) -> bool) -> Value {
    loop {
        let message: Value = serde_json::from_str(&client.text().await).unwrap();
        if message["type"] == kind && fits(&message["data"]) {
            return message["data"].clone();
        }
    }
}

#[tokio::test]
async fn backends_are_told_as_they_stand_and_then_as_they_change() {
    let stage = Stage::new().await;
    let (mut one, mut other) = (Poller::of(&stage, "gpu-0"), Poller::of(&stage, "gpu-1"));
    let stands = [one.says(BackendCondition::Idle).await, other.says(BackendCondition::Down).await];
    let mut client = stage.connect().await;
    let confirmed = subscribe(&mut client, json!({"type": "subscribe", "topics": ["backends"]})).await;
    assert_eq!((&confirmed["topics"], &confirmed["job_ids"]), (&json!(["backends"]), &json!([])));
    let mut told = [client.expect("backend_update").await, client.expect("backend_update").await];
    told.sort_by_key(|state| state["id"].to_string());
    assert_eq!(told, stands, "passed on as it was said");

    let busy = one.says(BackendCondition::Busy).await;
    assert_eq!(client.expect("backend_update").await, busy);
    // Whoever comes next is told the same by this gateway, without a look at the stream.
    let mut next = stage.connect().await;
    subscribe(&mut next, json!({"type": "subscribe", "topics": ["backends"]})).await;
    assert_eq!(next.expect("backend_update").await, busy);
    assert_eq!(next.expect("backend_update").await, stands[1]);

    let left = subscribe(&mut client, json!({"type": "unsubscribe", "topics": ["backends"]})).await;
    assert_eq!(left["topics"], json!([]));
    let idle = one.says(BackendCondition::Idle).await;
    assert_eq!(next.expect("backend_update").await, idle);
    client.expect_nothing_more().await;
}

#[tokio::test]
async fn what_is_older_than_what_was_told_is_not_told_nor_is_what_cannot_be_read() {
    let stage = Stage::new().await;
    let mut poller = Poller::of(&stage, "gpu-0");
    let mut late = Poller::of(&stage, "gpu-0").state;
    let idle = poller.says(BackendCondition::Idle).await;
    let mut client = stage.connect().await;
    subscribe(&mut client, json!({"type": "subscribe", "topics": ["backends"]})).await;
    assert_eq!(client.expect("backend_update").await, idle);
    late.updated_at = Timestamp::from_millis(0);
    for payload in [serde_json::to_vec(&late).unwrap(), b"{".to_vec(), b"{} {}".to_vec(), b"\xff".to_vec()] {
        stage.client.publish(subjects::backend(&late.id), payload.into()).await.unwrap();
    }
    let busy = poller.says(BackendCondition::Busy).await;
    assert_eq!(client.expect("backend_update").await, busy);
}

#[tokio::test]
async fn statistics_are_asked_for_while_somebody_wants_them_and_once_for_all() {
    let stage = Stage::new().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = stage.connect().await;
        let confirmed =
            subscribe(&mut client, json!({"type": "subscribe", "topics": ["stats"], "request_id": "t"}))
                .await;
        assert_eq!((&confirmed["topics"], &confirmed["request_id"]), (&json!(["stats"]), &json!("t")));
        assert_eq!(client.expect("stats").await["window"], "1h");
        clients.push(client);
    }
    for client in &mut clients {
        let next = until(client, "stats", |data| data["count"] == 3).await;
        assert_eq!(next["count"], 3, "each answer goes to all");
    }
    assert!(stage.api.counted() < 6, "{} questions for three clients", stage.api.counted());
    drop(clients);
    let mut asked = 0;
    while stage.api.counted() != asked {
        asked = stage.api.counted();
        assert!(asked < 10, "it is asked for nobody");
        sleep(Duration::from_secs(3)).await;
    }
}

#[tokio::test]
async fn jobs_are_told_beside_topics_and_a_silent_api_takes_nothing_but_the_statistics() {
    let stage = Stage::with(&["--gateway-request-timeout", "300ms"]).await;
    stage.api.set(|lists| lists.silent = true);
    let (mut poller, mut job) = (Poller::of(&stage, "gpu-0"), stage.job());
    let mut client = stage.connect().await;
    let message = json!({"type": "subscribe", "job_ids": [job.id], "topics": ["stats", "backends"]});
    let confirmed = subscribe(&mut client, message).await;
    assert_eq!(
        (&confirmed["topics"], &confirmed["job_ids"]),
        (&json!(["stats", "backends"]), &json!([job.id]))
    );
    poller.says(BackendCondition::Busy).await;
    client.expect("backend_update").await;
    job.queued().await;
    client.expect_of("generation_queued", job.id).await;
    job.started().await;
    job.completed().await;
    client.expect_of("generation_started", job.id).await;
    client.expect_of("generation_complete", job.id).await;
    stage.api.set(|lists| lists.silent = false);
    until(&mut client, "stats", |_| true).await;
    let left = subscribe(&mut client, json!({"type": "unsubscribe"})).await;
    assert_eq!((&left["topics"], &left["job_ids"]), (&json!([]), &json!([])), "that ends everything");
}

#[tokio::test]
async fn a_backend_that_nobody_speaks_of_any_more_is_gone() {
    let stage = Stage::new().await;
    Poller::of(&stage, "gpu-0").says(BackendCondition::Idle).await;
    let mut client = stage.connect().await;
    // The statistics show that time passes.
    subscribe(&mut client, json!({"type": "subscribe", "topics": ["stats", "backends"]})).await;
    until(&mut client, "backend_update", |data| data["id"] == "gpu-0").await;
    let before = stage.api.counted();
    assert_eq!(until(&mut client, "backend_gone", |_| true).await, json!({"id": "gpu-0"}));
    assert!(stage.api.counted() - before >= 10, "not before half a minute is over");
    let mut next = stage.connect().await;
    subscribe(&mut next, json!({"type": "subscribe", "topics": ["backends"]})).await;
    next.expect_nothing_more().await;
}

#[tokio::test]
async fn topics_come_as_server_sent_events_too() {
    let stage = Stage::new().await;
    let idle = Poller::of(&stage, "gpu-0").says(BackendCondition::Idle).await;
    let mut job = stage.job();
    job.queued().await;
    stage.api.set(|lists| lists.active = vec![job.id]);
    let mut events = Events::open(&stage, "?topics=backends", None).await;
    let (place, confirmed) = events.expect("subscription_confirmed").await;
    assert_eq!(
        (&confirmed["topics"], &confirmed["job_ids"], place),
        (&json!(["backends"]), &json!([]), None)
    );
    assert_eq!(events.expect("backend_update").await, (None, idle));
    let mut events = Events::open(&stage, "?topics=stats&job_ids=", None).await;
    assert_eq!(events.expect("subscription_confirmed").await.1["job_ids"], Value::Null, "and all jobs");
    events.expect_of("generation_queued", job.id).await;
    events.expect("stats").await;
}
