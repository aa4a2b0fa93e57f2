//! Publishing accepted events: at once where possible, by a sweep otherwise.
//!
//! A row leaves the outbox when the projector reads its event back from the stream, so that "published" is never
//! something one process believes alone.

use std::time::Duration;

use async_nats::jetstream;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use stepcast_shared::events::{self, LifecycleEvent, RecordError};
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::trace::SpanExt as _;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{Instrument as _, error, warn};

use crate::db::silence::in_time;
use crate::db::{Db, outbox};

/// How long an answer to a client may wait for its event to be recorded.
const PROMPT: Duration = Duration::from_millis(250);
/// How often due rows are looked for.
const SWEEP_EVERY: Duration = Duration::from_millis(500);
/// Rows taken at once.
const SWEEP_BATCH: u32 = 256;

/// Publishes events of the outbox.
#[derive(Clone)]
pub struct Publisher {
    db: Db,
    jetstream: jetstream::Context,
    supervisor: Supervisor,
}

impl Publisher {
    /// A publisher whose slow tries go on as tasks of `supervisor`.
    pub fn new(db: Db, jetstream: jetstream::Context, supervisor: Supervisor) -> Self {
        Self { db, jetstream, supervisor }
    }

    /// Tries to publish for at most 250 ms; what takes longer goes on behind the caller's back. True if all of it is
    /// recorded by then.
    pub async fn publish_promptly(&self, events: Vec<LifecycleEvent>) -> bool {
        let (done, waiting) = tokio::sync::oneshot::channel();
        let publisher = self.clone();
        self.supervisor.spawn_brief(async move {
            let mut recorded = true;
            for event in events {
                recorded &= publisher.publish(&event).await;
            }
            // Nobody listens any more once the 250 ms are over.
            let _ = done.send(recorded);
        });
        matches!(timeout(PROMPT, waiting).await, Ok(Ok(true)))
    }

    /// Publishes one event; what fails stays in the outbox for a later sweep. True once it is recorded.
    pub async fn publish(&self, event: &LifecycleEvent) -> bool {
        let span = event.publishing();
        match events::record(&self.jetstream, event).instrument(span.clone()).await {
            Ok(_) => true,
            Err(RecordError::Unavailable(cause)) => {
                span.fail("unavailable");
                warn!(job_id = %event.job_id, kind = %event.kind, error = %cause, "event not published yet");
                false
            }
            Err(RecordError::Fenced(_)) => {
                // Another event decided; the projector reads that one.
                span.fail("overruled");
                self.settle(event, Verdict::Overruled).await;
                false
            }
            Err(RecordError::TooLarge(bytes)) => {
                span.fail("too_large");
                error!(job_id = %event.job_id, kind = %event.kind, bytes, "event refused for good");
                self.settle(event, Verdict::Refused).await;
                false
            }
        }
    }

    async fn settle(&self, event: &LifecycleEvent, verdict: Verdict) {
        let done = async {
            let mut transaction = self.db.begin().await?;
            match verdict {
                Verdict::Overruled => outbox::remove(&mut transaction, &[&event.author]).await?,
                Verdict::Refused => {
                    metrics::counter!("stepcast_outbox_parked_total").increment(1);
                    outbox::park(&mut transaction, &event.author).await?;
                }
            }
            transaction.commit().await
        };
        if let Err(cause) = in_time(done).await {
            // The next sweep comes to the same verdict.
            warn!(error = %cause, "outbox row not settled yet");
        }
    }

    /// Publishes due rows until the process stops.
    pub async fn sweep(self) -> anyhow::Result<()> {
        let mut ticks = interval(SWEEP_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.supervisor.stopping().cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            if let Err(cause) = self.sweep_once().await {
                warn!(error = %cause, "outbox not swept");
            }
        }
    }

    async fn sweep_once(&self) -> sqlx::Result<()> {
        let (waiting, age) = in_time(outbox::backlog(self.db.read(), self.db.dialect)).await?;
        metrics::gauge!("stepcast_outbox_rows").set(waiting as f64);
        metrics::gauge!("stepcast_outbox_age_seconds").set(age as f64 / 1000.0);
        if waiting == 0 {
            return Ok(());
        }
        let due = in_time(self.take_due()).await?;
        let tries: FuturesUnordered<_> = due.iter().map(|event| self.publish(event)).collect();
        tries.collect::<Vec<bool>>().await;
        Ok(())
    }

    async fn take_due(&self) -> sqlx::Result<Vec<LifecycleEvent>> {
        let mut transaction = self.db.begin().await?;
        let due = outbox::take_due(&mut transaction, self.db.dialect, SWEEP_BATCH).await?;
        transaction.commit().await?;
        Ok(due)
    }
}

#[derive(Clone, Copy)]
enum Verdict {
    Overruled,
    Refused,
}
