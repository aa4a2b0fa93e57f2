//! The statistics: asked of api while somebody watches them.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use serde::Deserialize;
use serde_json::value::RawValue;
use stepcast_shared::messages::{StatsWindow, Timestamp};
use stepcast_shared::rpc::{self, StatsRequest};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Board, Matter, Topic};
use crate::ws::Wire;

/// How often they are asked for.
const EVERY: Duration = Duration::from_secs(2);

/// Brings statistics to a board.
#[derive(Debug)]
pub struct Statistics {
    /// Where they are watched.
    pub board: Arc<Board>,
    /// To ask with.
    pub client: Client,
    /// How long an answer may take.
    pub patience: Duration,
}

/// All that must be known of an answer: the rest is passed on as it came.
#[derive(Deserialize)]
struct Head {
    at: Timestamp,
}

impl Statistics {
    /// Runs until `stopping`.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        stopping.run_until_cancelled(self.forever()).await;
        Ok(())
    }

    async fn forever(&self) {
        loop {
            self.board.wanted(Topic::Stats).await;
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                // What is known grows old: whoever comes next is told something new.
                if self.board.forget(Topic::Stats) {
                    break;
                }
                self.ask().await;
            }
        }
    }

    /// Asks once. Without an answer nothing is told; it is asked again soon.
    async fn ask(&self) {
        let request = StatsRequest { window: StatsWindow::default() };
        let answer: Result<Box<RawValue>, _> =
            rpc::call(&self.client, rpc::STATS, &request, self.patience).await;
        let read = answer.and_then(|data| {
            let head = serde_json::from_str(data.get()).map_err(rpc::Error::Undecodable)?;
            Ok((data, head))
        });
        match read {
            Ok((data, Head { at })) => {
                let (data, now) = (data.get(), Timestamp::now());
                let message = format!(r#"{{"type":"stats","data":{data},"timestamp":"{now}"}}"#);
                self.board.tell(Matter::Stats, Wire::text(&message), at).await;
            }
            Err(error) => {
                metrics::counter!("stepcast_gateway_stats_unanswered_total").increment(1);
                debug!(error = &error as &dyn std::error::Error, "no statistics");
            }
        }
    }
}
