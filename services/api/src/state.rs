//! What every handler and task of the api shares: cheap handles.

use std::sync::Arc;

use async_nats::Client;
use async_nats::jetstream;
use object_store::ObjectStore;
use tokio_util::sync::CancellationToken;

use crate::backends::Backends;
use crate::config::Limits;
use crate::db::Db;
use crate::db::counts::Counter;
use crate::db::silence::Silence;
use crate::outbox::Publisher;
use crate::outlook::Outlooks;
use crate::progress::ProgressMap;
use crate::stats::Counts;

/// The shared handles.
#[derive(Clone)]
pub struct AppState {
    pub db: Db,
    pub silence: Silence,
    pub waiting: Counter,
    pub nats: Client,
    pub jetstream: jetstream::Context,
    pub images: Arc<dyn ObjectStore>,
    pub publisher: Publisher,
    pub progress: ProgressMap,
    pub backends: Backends,
    pub outlooks: Outlooks,
    pub counts: Counts,
    pub limits: Arc<Limits>,
    pub stopping: CancellationToken,
    pub allow_origins: Arc<[String]>,
}
