//! What the event stream holds.

use std::collections::BTreeMap;

use async_nats::Client;
use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use futures_util::StreamExt as _;
use stepcast_shared::subjects;

/// The kinds of all recorded events, in order, by job.
pub async fn events(client: &Client) -> BTreeMap<String, Vec<String>> {
    let context = jetstream::new(client.clone());
    let mut stream = context.get_stream(subjects::EVENTS_STREAM).await.unwrap();
    let messages = usize::try_from(stream.info().await.unwrap().state.messages).unwrap();
    let consumer = stream.create_consumer(OrderedConfig::default()).await.unwrap();
    let mut told: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut stored = consumer.messages().await.unwrap().take(messages);
    while let Some(message) = stored.next().await {
        let subject = subjects::parse_job(&message.unwrap().subject).unwrap();
        told.entry(subject.job_id.to_string()).or_default().push(subject.kind.to_string());
    }
    told
}

/// Every one of these jobs was queued, started and completed once, and there are no others.
pub async fn each_job_went_straight_through<'a>(client: &Client, jobs: impl Iterator<Item = &'a String>) {
    let told = events(client).await;
    assert_eq!(told.keys().collect::<Vec<_>>(), jobs.collect::<Vec<_>>());
    for (id, kinds) in told {
        assert_eq!(kinds, ["queued", "started", "completed"], "{id}");
    }
}
