//! Reads the event stream on after an outage, so that whoever stayed is told what was recorded meanwhile.
//!
//! It is noted again and again how far the stream is whose live messages have all arrived. An outage of NATS, or of the
//! stream's leader, may have cost some: from the last note on the stream is read, whatever job an event is of. Until
//! that is done no client is told a place in the stream.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use stepcast_shared::health::ReadyCheck;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::close;
use crate::feed::Feed;
use crate::hub::Hub;
use crate::snapshot::{BATCH, Reader};

/// How often the connection is looked at.
const TICK: Duration = Duration::from_millis(250);
/// How often it is noted how far the stream is.
const NOTE_EVERY: Duration = Duration::from_secs(1);
/// How long the stream's leader may take to say so. One that is gone may have recorded what it told nobody; another
/// records nothing for four seconds, the least time after which it stands for election.
const LEADER_WITHIN: Duration = Duration::from_secs(1);
/// Most batches that are read after an outage: 5,000 events, as for a client that comes back.
const MOST_BATCHES: usize = 25;

/// The task that finds gaps and closes them.
#[derive(Debug)]
pub struct Gap {
    /// Who watches what.
    pub hub: Arc<Hub>,
    /// Reads the stream.
    pub reader: Arc<Reader>,
    /// Tells of reconnects.
    pub feed: Arc<Feed>,
    /// Told whether NATS is there.
    pub ready: ReadyCheck,
}

/// How far the stream was when live messages were last known to arrive.
#[derive(Debug, Default)]
struct Heard {
    until: Option<u64>,
    /// How far the stream was at the last look.
    newest: Option<u64>,
    noted: Option<Instant>,
    /// Whether NATS, or the stream's leader, was away since then.
    gap: bool,
}

impl Gap {
    /// Runs until `stopping`.
    pub async fn run(self, stopping: CancellationToken) -> anyhow::Result<()> {
        stopping.run_until_cancelled(self.watch()).await;
        Ok(())
    }

    async fn watch(&self) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut connects = self.feed.connects();
        let mut heard = Heard::default();
        loop {
            tick.tick().await;
            let is_connected = self.reader.is_connected() && self.feed.is_connected();
            self.ready.set("gateway nats", is_connected.then_some(()).ok_or("not connected".to_owned()));
            if !is_connected {
                continue;
            }
            let seen = self.feed.connects();
            if connects != seen {
                // Only behind subscriptions that have taken effect nothing is missed anew.
                if !self.feed.settled().await {
                    continue;
                }
                connects = seen;
                info!("nats is back, what was recorded meanwhile is read");
                heard.gap = true;
            }
            if heard.gap {
                self.close(&mut heard, connects).await;
            } else if heard.noted.is_none_or(|at| at.elapsed() >= NOTE_EVERY) {
                self.note(&mut heard, connects).await;
            }
        }
    }

    /// Notes how far the stream is that has been heard of.
    async fn note(&self, heard: &mut Heard, connects: u64) {
        heard.noted = Some(Instant::now());
        let newest = timeout(LEADER_WITHIN, self.reader.newest()).await;
        match newest.context("the leader is silent").flatten() {
            // What was recorded by then counts as heard once the feed has been read up to here, and only a look later,
            // since what the server has stored it may still have to send.
            Ok(newest) if self.feed.settled().await && self.feed.connects() == connects => {
                heard.until = heard.newest.replace(newest.place).or(Some(newest.place));
            }
            Ok(_) => {}
            Err(error) => {
                debug!(error = format!("{error:#}"), "the stream does not tell how far it is");
                self.feed.open_gap();
                heard.gap = true;
            }
        }
    }

    /// Passes on what was recorded since the last note: a job that began and ended meanwhile is in no list.
    ///
    /// A little of what was heard is read again; the hub knows it.
    async fn close(&self, heard: &mut Heard, connects: u64) {
        let Some(mut until) = heard.until else {
            // It was lost before anything could be noted: what is due is read in any case.
            heard.gap = false;
            self.feed.close_gap(connects);
            return;
        };
        for _ in 0..MOST_BATCHES {
            match self.reader.after(until, BATCH).await {
                Ok((_, reached)) if reached == until => {
                    heard.newest = Some(reached);
                    heard.gap = false;
                    self.feed.close_gap(connects);
                    return;
                }
                Ok((frames, reached)) => {
                    let new = self.hub.deliver_all(frames.iter().map(|(owner, frame)| (owner, frame)));
                    metrics::counter!("stepcast_gateway_gap_recovered_total").increment(new as u64);
                    until = reached;
                    heard.until = Some(reached);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    warn!(error, "what was missed could not be read, it is tried again");
                    return;
                }
            }
        }
        warn!("too much was recorded while nats was away, clients are asked to come back");
        self.hub.send_away(close::TOO_MUCH);
        *heard = Heard::default();
        self.feed.close_gap(connects);
    }
}
