//! The last state of each backend, as its poller published it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::Client;
use futures_util::StreamExt as _;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::BackendState;
use stepcast_shared::nats::multi_last;
use stepcast_shared::subjects;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Age at which a backend that nobody speaks of any more is forgotten: as long as its stream keeps it.
const MAX_AGE: Duration = Duration::from_secs(30);

/// The last state of each backend.
#[derive(Clone, Debug, Default)]
pub struct Backends(Arc<Mutex<BTreeMap<BackendId, (Instant, BackendState)>>>);

impl Backends {
    /// Every backend that was heard of lately, by id.
    pub fn list(&self) -> Vec<BackendState> {
        let mut map = self.0.lock().expect("no code panics while it holds this lock");
        map.retain(|_, (seen, _)| seen.elapsed() < MAX_AGE);
        map.values().map(|(_, state)| state.clone()).collect()
    }

    fn note(&self, payload: &[u8]) {
        let Ok(state) = serde_json::from_slice::<BackendState>(payload) else { return };
        let mut map = self.0.lock().expect("no code panics while it holds this lock");
        let newer = map.get(&state.id).is_none_or(|(_, known)| known.updated_at <= state.updated_at);
        if newer {
            map.insert(state.id.clone(), (Instant::now(), state));
        }
    }
}

/// Follows all backends until the process stops.
pub async fn follow(client: Client, backends: Backends, stopping: CancellationToken) -> anyhow::Result<()> {
    let mut states =
        client.subscribe(subjects::ALL_BACKENDS).await.context("backends cannot be subscribed to")?;
    match multi_last(&client, subjects::BACKENDS_STREAM, &[subjects::ALL_BACKENDS.to_owned()], None).await {
        Ok(known) => known.iter().for_each(|message| backends.note(&message.payload)),
        Err(error) => warn!(error = format!("{error:#}"), "backends not known yet"),
    }
    loop {
        tokio::select! {
            () = stopping.cancelled() => return Ok(()),
            message = states.next() => {
                backends.note(&message.context("the backend subscription ended")?.payload);
            }
        }
    }
}
