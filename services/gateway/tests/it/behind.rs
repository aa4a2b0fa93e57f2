//! A copy of the event stream that is behind, and answers direct gets beside it.
//!
//! In a cluster any replica may answer a direct get, and one joins in when it has caught up to nine tenths
//! (`startDirectAccessMonitoring` of the server's `jetstream_cluster.go`). None can be made to lag on cue; a mirror,
//! which joins in as well, can: this one is full.

use async_nats::Client;
use async_nats::jetstream::{self, stream};
use stepcast_shared::subjects::{ALL_EVENTS, EVENTS_STREAM};
use tokio::time::{Duration, sleep, timeout};

use crate::stage::PATIENCE;

/// Has a copy answer, from now on, as the stream stands now.
pub async fn freeze(client: &Client) {
    let context = jetstream::new(client.clone());
    let recorded = context.get_stream(EVENTS_STREAM).await.unwrap().cached_info().state.messages;
    let config = stream::Config {
        name: "COPY".to_owned(),
        mirror: Some(stream::Source { name: EVENTS_STREAM.to_owned(), ..Default::default() }),
        mirror_direct: true,
        allow_direct: true,
        max_messages: recorded.try_into().unwrap(),
        discard: stream::DiscardPolicy::New,
        ..Default::default()
    };
    let mut copy = context.create_stream(config).await.unwrap();
    let copied = async {
        while copy.info().await.unwrap().state.messages < recorded {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, copied).await.expect("a timely copy");
}

/// Waits until an answer has lacked the event at `place`, so that it is certain that others may.
pub async fn is_asked(client: &Client, place: u64) {
    let stream = jetstream::new(client.clone()).get_stream(EVENTS_STREAM).await.unwrap();
    let lacking =
        async { while stream.direct_get_last_for_subject(ALL_EVENTS).await.unwrap().sequence >= place {} };
    timeout(PATIENCE, lacking).await.expect("the copy is asked");
}
