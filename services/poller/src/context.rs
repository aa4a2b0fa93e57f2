//! What all backends of a poller share: cheap handles.

use std::sync::Arc;

use async_nats::Client;
use async_nats::jetstream::{self, kv};
use object_store::ObjectStore;
use stepcast_shared::health::ReadyCheck;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::PollerConfig;

/// The shared handles.
#[derive(Clone)]
pub struct Shared {
    pub client: Client,
    pub jetstream: jetstream::Context,
    pub leases: kv::Store,
    pub inflight: kv::Store,
    pub images: Arc<dyn ObjectStore>,
    pub config: Arc<PollerConfig>,
    /// Names this process, and this life of it.
    pub poller: String,
    pub stopping: CancellationToken,
    pub tasks: TaskTracker,
    pub ready: ReadyCheck,
}
