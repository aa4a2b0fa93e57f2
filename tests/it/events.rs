//! The event stream as the arbiter between two authors, on a real server.

use std::time::Duration;

use futures_util::StreamExt as _;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::events::{LifecycleEvent, RecordError, last_event, record};
use stepcast_shared::ids::{BackendId, JobId, Owner, Pool};
use stepcast_shared::job::Priority;
use stepcast_shared::messages::{JobMessage, Queued, Started, Status};
use stepcast_shared::{nats, subjects};
use stepcast_tests::nats::{NatsServer, settled};
use tokio::time::timeout;

pub fn queued(job_id: JobId, author: &str) -> LifecycleEvent {
    let message = JobMessage::Queued(Queued {
        job_id,
        status: Status::Pending,
        attempt: 0,
        seq: 0,
        params: serde_json::json!({"prompt": "x"}),
        position: None,
        priority: Priority::default(),
        pool: Pool::default(),
        label: None,
    });
    LifecycleEvent::new(Owner::anonymous(), message, author.to_owned(), 0)
}

pub fn started(job_id: JobId, author: &str, expected_last: u64) -> LifecycleEvent {
    let message = JobMessage::Started(Started {
        job_id,
        status: Status::Running,
        attempt: 1,
        seq: 1,
        params: serde_json::json!({"prompt": "x"}),
        estimated_duration: None,
        backend: "gpu".parse::<BackendId>().unwrap(),
    });
    LifecycleEvent::new(Owner::anonymous(), message, author.to_owned(), expected_last)
}

#[tokio::test]
async fn of_two_authors_of_one_event_one_is_told_that_it_lost() {
    let server = NatsServer::start().await.unwrap();
    let client = nats::connect("test", &NatsConfig::at(server.url())).await.unwrap();
    let context = nats::prepare(&client).await.unwrap();
    let job_id = JobId::mint();
    let mut live = client.subscribe(subjects::all_of_job(&Owner::anonymous(), job_id)).await.unwrap();
    settled(&client).await.unwrap();

    let first = record(&context, &queued(job_id, "outbox")).await.unwrap();
    assert_eq!(record(&context, &queued(job_id, "outbox")).await.unwrap(), first, "our own, again");

    let begun = record(&context, &started(job_id, "one", first)).await.unwrap();
    // The message id is the same and the server acknowledges it as a duplicate: only the author tells.
    let other = record(&context, &started(job_id, "two", first)).await;
    assert!(matches!(&other, Err(RecordError::Fenced(Some(last))) if last.sequence == begun), "{other:?}");
    let late = record(&context, &queued(job_id, "outbox")).await;
    assert!(matches!(late, Err(RecordError::Fenced(Some(_)))), "{late:?}");
    let last = last_event(&context, &Owner::anonymous(), job_id).await.unwrap().unwrap();
    assert_eq!((last.sequence, last.author.as_deref()), (begun, Some("one")));

    for kind in ["queued", "started"] {
        let message = timeout(Duration::from_secs(10), live.next()).await.unwrap().unwrap();
        assert!(message.subject.ends_with(kind), "live is what was recorded: {}", message.subject);
    }
    let more = timeout(Duration::from_millis(300), live.next()).await;
    assert!(more.is_err(), "what was refused or dropped is told to nobody: {more:?}");
}

#[tokio::test]
async fn an_event_too_large_for_the_bus_is_refused_before_it_is_sent() {
    let server = NatsServer::start().await.unwrap();
    let client = nats::connect("test", &NatsConfig::at(server.url())).await.unwrap();
    let context = nats::prepare(&client).await.unwrap();
    let mut event = queued(JobId::mint(), "outbox");
    event.payload = vec![b' '; 300_000].into();
    assert!(matches!(record(&context, &event).await, Err(RecordError::TooLarge(300_000))));
}
