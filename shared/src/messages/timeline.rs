//! When an attempt got where.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// When an attempt got where, by the clock of the poller that ran it.
///
/// Each is there only if it was seen: a stage may be over before SD.Next is looked at, or the server may not tell of
/// it. What is read off polls (`model_loaded` to `decoded`) is the time of the poll that first showed it, and so up to
/// `resolution_seconds` late, never early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
#[serde(default)]
pub struct Moments {
    /// The claim arrived.
    pub dispatched: Option<Timestamp>,
    /// The request was sent to SD.Next.
    pub posted: Option<Timestamp>,
    /// A checkpoint was loaded for it, and something else began. Only where loading was seen.
    pub model_loaded: Option<Timestamp>,
    /// A sampling step was done.
    pub first_step: Option<Timestamp>,
    /// Every sampling pass was over.
    pub sampled: Option<Timestamp>,
    /// The last image was decoded, and was about to be saved by SD.Next or post-processed.
    pub decoded: Option<Timestamp>,
    /// SD.Next's answer had arrived.
    pub rendered: Option<Timestamp>,
    /// The images were in the store.
    pub stored: Option<Timestamp>,
    /// How much later than it happened a moment that polls show may be: the longest time between two of them.
    pub resolution_seconds: Option<f64>,
}
