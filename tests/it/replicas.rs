//! Copies of a stream that are behind and answer direct gets: no decision rests on what they say.
//!
//! In a cluster a replica may answer that has only nine tenths of what was recorded
//! (`startDirectAccessMonitoring` of the server's `jetstream_cluster.go`). None can be made to lag on cue; a mirror,
//! which answers as well, can: this one is full.

use async_nats::jetstream::{self, stream};
use stepcast_shared::config::NatsConfig;
use stepcast_shared::events::{last_event, record};
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::nats;
use stepcast_shared::subjects::{self, EVENTS_STREAM, LEASES_BUCKET};
use stepcast_tests::nats::NatsServer;
use stepcast_tests::wait::until;

use crate::events::{queued, started};

/// How often something is asked that the copy would answer every other time.
const TRIES: usize = 20;

struct Stage {
    context: jetstream::Context,
    _server: NatsServer,
}

impl Stage {
    async fn set() -> Self {
        let server = NatsServer::start().await.unwrap();
        let client = nats::connect("test", &NatsConfig::at(server.url())).await.unwrap();
        let context = nats::prepare(&client).await.unwrap();
        Self { context, _server: server }
    }

    /// Has a copy answer, from now on, as the stream stands now.
    async fn freeze(&self, stream: &str) {
        let recorded = self.context.get_stream(stream).await.unwrap().cached_info().state.messages;
        let config = stream::Config {
            name: "COPY".to_owned(),
            mirror: Some(stream::Source { name: stream.to_owned(), ..Default::default() }),
            mirror_direct: true,
            allow_direct: true,
            max_messages: recorded.try_into().unwrap(),
            discard: stream::DiscardPolicy::New,
            ..Default::default()
        };
        let copy = self.context.create_stream(config).await.unwrap();
        until("all is copied", async || {
            (copy.get_info().await.unwrap().state.messages == recorded).then_some(())
        })
        .await;
    }

    /// Waits until an answer has lacked what stands at `place`, so that it is certain that others may.
    async fn lacks(&self, stream: &str, subject: &str, place: u64) {
        let stream = self.context.get_stream(stream).await.unwrap();
        until("the copy is asked", async || {
            let last = stream.direct_get_last_for_subject(subject).await.ok();
            last.is_none_or(|last| last.sequence < place).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_author_whose_acknowledgement_was_lost_has_not_lost() {
    let stage = Stage::set().await;
    let (owner, job_id) = (Owner::anonymous(), JobId::mint());
    let first = record(&stage.context, &queued(job_id, "outbox")).await.unwrap();
    stage.freeze(EVENTS_STREAM).await;
    let event = started(job_id, "one", first);
    let begun = record(&stage.context, &event).await.unwrap();
    stage.lacks(EVENTS_STREAM, &subjects::events_of_job(&owner, job_id), begun).await;
    for _ in 0..TRIES {
        assert_eq!(record(&stage.context, &event).await.unwrap(), begun);
        let last = last_event(&stage.context, &owner, job_id).await.unwrap().unwrap();
        assert_eq!(last.sequence, begun);
    }
}

#[tokio::test]
async fn who_holds_a_backend_is_read_from_who_knows() {
    let stage = Stage::set().await;
    let leases = stage.context.get_key_value(LEASES_BUCKET).await.unwrap();
    assert_eq!(nats::held(&stage.context, &leases, "gpu").await.unwrap(), None);
    let taken = leases.put("gpu", "one".into()).await.unwrap();
    stage.freeze(&leases.stream_name).await;
    let renewed = leases.update("gpu", "one".into(), taken).await.unwrap();
    stage.lacks(&leases.stream_name, &format!("{}gpu", leases.prefix), renewed).await;
    for _ in 0..TRIES {
        assert_eq!(nats::held(&stage.context, &leases, "gpu").await.unwrap(), Some(("one".into(), renewed)));
    }
    leases.delete("gpu").await.unwrap();
    assert_eq!(nats::held(&stage.context, &leases, "gpu").await.unwrap(), None, "given back");
}
