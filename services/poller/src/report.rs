//! Saying what a backend is doing: on every change, and often enough that its stream never forgets it.

use std::time::Duration;

use async_nats::Client;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::{BackendState, Timestamp};
use stepcast_shared::subjects;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use crate::meter;

/// A third of the age at which the stream forgets a state.
const REPEAT_EVERY: Duration = Duration::from_secs(10);

/// Publishes what `states` says; never returns. `None` is said by nobody: another poller holds the backend.
pub async fn report(
    client: Client,
    backend: BackendId,
    mut states: watch::Receiver<Option<BackendState>>,
) -> std::convert::Infallible {
    loop {
        let state = states.borrow_and_update().clone();
        meter::state(&backend, state.as_ref().map(|state| state.state));
        if let Some(state) = state {
            let state = BackendState { updated_at: Timestamp::now(), ..state };
            let payload = serde_json::to_vec(&state).expect("a state holds only what JSON can say");
            if let Err(error) = client.publish(subjects::backend(&state.id), payload.into()).await {
                warn!(error = %error, "state not published");
            }
        }
        match timeout(REPEAT_EVERY, states.changed()).await {
            Ok(Ok(())) | Err(_) => {}
            // Whoever spoke is gone; whoever waits for this future drops it.
            Ok(Err(_)) => std::future::pending().await,
        }
    }
}
