//! What a poller says of a backend.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;
use crate::ids::{BackendId, JobId, Pool};

/// State of a backend, on `stepcast.v1.backend.<id>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct BackendState {
    /// Which backend.
    pub id: BackendId,
    /// What it is doing.
    pub state: BackendCondition,
    /// Its address, without credentials.
    pub url: String,
    /// `sdnext`, …
    pub dialect: String,
    /// The pools it serves.
    pub pools: Vec<Pool>,
    /// Checkpoint that is loaded, where known.
    pub model: Option<String>,
    /// The job it renders.
    pub job_id: Option<JobId>,
    /// Work on it that is not ours: what its server shows.
    pub foreign: Option<String>,
    /// One sentence on what is wrong.
    pub message: Option<String>,
    /// The process that holds it.
    pub poller: String,
    /// When it was last looked at.
    pub updated_at: Timestamp,
}

/// Why a backend is to be given no work. Whatever it renders is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BackendMode {
    /// It has a rest and keeps its place.
    Paused,
    /// It is to be emptied, and then to say that it is: [`BackendCondition::Drained`].
    Draining,
}

/// What a backend is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::schema::open)]
pub enum BackendCondition {
    /// Ready for work.
    Idle,
    /// Rendering a job of ours.
    Busy,
    /// Rendering for somebody else.
    Foreign,
    /// Answers, and has no model yet.
    Starting,
    /// Failed too often in a row; it is tried from time to time.
    Quarantined,
    /// Idle, and kept from work until it is resumed: its server may be shut down.
    Drained,
    /// Cannot be reached.
    Down,
}
