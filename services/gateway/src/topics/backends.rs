//! The states of the backends: followed while somebody watches them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt as _;
use serde::Deserialize;
use stepcast_shared::ids::BackendId;
use stepcast_shared::messages::Timestamp;
use stepcast_shared::nats::multi_last;
use stepcast_shared::subjects::{ALL_BACKENDS, BACKENDS_STREAM};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Board, Matter, Topic};
use crate::ws::Wire;

/// Silence after which a backend is gone: as long as its stream keeps its state.
const GONE_AFTER: Duration = Duration::from_secs(30);
/// How often it is looked who is gone, and whether anybody watches.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Pause before what failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Brings the states of the backends to a board.
#[derive(Debug)]
pub struct Backends {
    /// Where they are watched.
    pub board: Arc<Board>,
    /// To hear them with.
    pub client: Client,
}

/// All that must be known of a state: the rest is passed on as it came.
#[derive(Deserialize)]
struct Head {
    id: BackendId,
    updated_at: Timestamp,
}

impl Backends {
    /// Runs until `stopping`.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        stopping.run_until_cancelled(self.forever()).await;
        Ok(())
    }

    async fn forever(&self) {
        loop {
            self.board.wanted(Topic::Backends).await;
            if let Err(error) = self.follow().await {
                warn!(error = format!("{error:#}"), "backends are not followed for now");
                sleep(AGAIN).await;
            }
        }
    }

    /// Follows them until nobody watches any longer.
    async fn follow(&self) -> anyhow::Result<()> {
        let mut states =
            self.client.subscribe(ALL_BACKENDS).await.context("backends cannot be subscribed to")?;
        // Behind the subscription, so that nothing falls between.
        self.read().await;
        self.pass_on(&mut states).await
    }

    /// Tells how all of them stand; false if that could not be read.
    async fn read(&self) -> bool {
        match multi_last(&self.client, BACKENDS_STREAM, &[ALL_BACKENDS.to_owned()], None).await {
            Ok(known) => {
                for message in known {
                    self.tell(&message.payload).await;
                }
                true
            }
            Err(error) => {
                debug!(error = format!("{error:#}"), "backends not known yet");
                false
            }
        }
    }

    async fn pass_on(&self, states: &mut Subscriber) -> anyhow::Result<()> {
        let mut looks = interval_at(Instant::now() + LOOK_EVERY, LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What was said just before the subscription may not have been in the stream when that was read.
        let mut is_read = false;
        loop {
            tokio::select! {
                state = states.next() => {
                    self.tell(&state.context("the subscription to backends ended")?.payload).await;
                }
                _ = looks.tick() => {
                    if self.board.forget(Topic::Backends) {
                        return Ok(());
                    }
                    if !is_read {
                        is_read = self.read().await;
                    }
                    self.tell_who_is_gone().await;
                }
            }
        }
    }

    async fn tell(&self, state: &[u8]) {
        let read = serde_json::from_slice(state).ok().zip(std::str::from_utf8(state).ok());
        let Some((Head { id, updated_at }, data)) = read else {
            metrics::counter!("stepcast_gateway_undecodable_total").increment(1);
            return debug!("a backend's state is not passed on");
        };
        let now = Timestamp::now();
        let message = format!(r#"{{"type":"backend_update","data":{data},"timestamp":"{now}"}}"#);
        self.board.tell(Matter::Backend(id), Wire::text(&message), updated_at).await;
    }

    async fn tell_who_is_gone(&self) {
        if self.client.connection_state() != async_nats::connection::State::Connected {
            // It is us who hear nothing.
            return self.board.refresh(Topic::Backends);
        }
        for matter in self.board.silent(Topic::Backends, GONE_AFTER) {
            let Matter::Backend(id) = &matter else { continue };
            let now = Timestamp::now();
            let message = format!(r#"{{"type":"backend_gone","data":{{"id":"{id}"}},"timestamp":"{now}"}}"#);
            self.board.retire(matter, Wire::text(&message)).await;
        }
    }
}
