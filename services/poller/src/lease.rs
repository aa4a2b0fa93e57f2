//! Holding a backend: one poller at a time, by a key in NATS.
//!
//! The key's age limit ends a lease whose holder is gone; its revision at acquisition is the epoch by which api tells
//! an old holder from a new one.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::kv::{CreateErrorKind, Store, UpdateErrorKind};
use stepcast_shared::ids::BackendId;
use stepcast_shared::nats;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::warn;

/// How often a lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(5);
/// Age of the last renewal at which its holder stops posting: a third of the lease is left for what is under way.
const STALE_AFTER: Duration = Duration::from_secs(20);

/// A held backend. Dropped, it is no longer renewed.
#[derive(Debug)]
pub struct Lease {
    /// Revision at acquisition.
    pub epoch: u64,
    state: watch::Receiver<State>,
    _renewing: DropGuard,
}

#[derive(Clone, Copy, Debug)]
struct State {
    renewed: Instant,
    lost: bool,
}

impl Lease {
    /// Takes a backend that nobody holds; `None` if somebody does.
    ///
    /// With `sole_holder` a key left by an earlier life of this process is overwritten.
    pub async fn acquire(
        context: &jetstream::Context,
        store: &Store,
        backend: &BackendId,
        holder: &str,
        sole_holder: bool,
        tasks: &TaskTracker,
    ) -> anyhow::Result<Option<Self>> {
        let (key, value) = (backend.as_str().to_owned(), bytes::Bytes::from(holder.to_owned()));
        let epoch = if sole_holder {
            store.put(&key, value.clone()).await?
        } else {
            match store.create(&key, value.clone()).await {
                Ok(revision) => revision,
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        };
        let (report, state) = watch::channel(State { renewed: Instant::now(), lost: false });
        let stop = CancellationToken::new();
        tasks.spawn(renew(context.clone(), store.clone(), key, value, epoch, report, stop.clone()));
        Ok(Some(Self { epoch, state, _renewing: stop.drop_guard() }))
    }

    /// Whether a POST may be sent: the lease was renewed lately and is not another's.
    pub fn is_fresh(&self) -> bool {
        let state = *self.state.borrow();
        !state.lost && state.renewed.elapsed() < STALE_AFTER
    }

    /// Whether somebody else holds the backend now.
    pub fn is_lost(&self) -> bool {
        self.state.borrow().lost
    }
}

async fn renew(
    context: jetstream::Context,
    store: Store,
    key: String,
    value: bytes::Bytes,
    mut revision: u64,
    report: watch::Sender<State>,
    stop: CancellationToken,
) {
    let mut ticks = interval(RENEW_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            () = stop.cancelled() => {
                // So that the next holder need not wait for the age limit; if it fails, that is what happens.
                let _ = store.delete_expect_revision(&key, Some(revision)).await;
                return;
            }
            _ = ticks.tick() => {}
        }
        match store.update(&key, value.clone(), revision).await {
            Ok(next) => {
                revision = next;
                report.send_modify(|state| state.renewed = Instant::now());
            }
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                // Ours, if the acknowledgement of an earlier renewal was lost.
                match nats::held(&context, &store, &key).await {
                    Ok(Some((holder, of))) if holder == value => revision = of,
                    Ok(_) => {
                        warn!(backend = key, "another poller holds this backend now");
                        report.send_modify(|state| state.lost = true);
                        return;
                    }
                    Err(error) => {
                        warn!(backend = key, error = format!("{error:#}"), "lease not renewed");
                    }
                }
            }
            Err(error) => warn!(backend = key, error = %error, "lease not renewed"),
        }
    }
}
