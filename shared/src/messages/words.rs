//! The words that a job's state is told in.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where in its life a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Waiting, for its first attempt or for another.
    Pending,
    /// A render has begun.
    Running,
    /// Ended with its images.
    Completed,
    /// Ended without.
    Failed,
    /// Ended on request.
    Cancelled,
}

impl Status {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing follows it.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Status {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [Self::Pending, Self::Running, Self::Completed, Self::Failed, Self::Cancelled]
            .into_iter()
            .find(|status| status.as_str() == word)
            .ok_or(())
    }
}

/// What a render is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::schema::open)]
pub enum Stage {
    /// A checkpoint is being loaded.
    Loading,
    /// Between the request and the first step.
    Preparing,
    /// The main pass.
    Sampling,
    /// The second pass, at a larger size.
    Hires,
    /// Faces and details are repainted.
    Detailing,
    /// Latents become pixels.
    Decoding,
    /// Pixels become files.
    Saving,
}

impl Stage {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Preparing => "preparing",
            Self::Sampling => "sampling",
            Self::Hires => "hires",
            Self::Detailing => "detailing",
            Self::Decoding => "decoding",
            Self::Saving => "saving",
        }
    }
}

/// What a progress figure rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::schema::open)]
pub enum Source {
    /// The server has just said so.
    Measured,
    /// Computed from this backend's earlier timings.
    Estimated,
    /// Nothing new is known; the last figure stands.
    Held,
}

/// Why a job or an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = crate::schema::open)]
pub enum ErrorCode {
    /// The server refused the request; it would refuse it again.
    Rejected,
    /// The server could not be reached, broke off, or was too busy.
    BackendUnavailable,
    /// The server ran out of memory.
    OutOfMemory,
    /// The server said 200 and sent too few images.
    NoImages,
    /// The server said 200 and sent an image of another size.
    WrongSize,
    /// Nothing changed for too long.
    Stalled,
    /// The job's time was up.
    Deadline,
    /// Somebody asked for it.
    Cancelled,
    /// Our own fault.
    Internal,
}

impl ErrorCode {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::BackendUnavailable => "backend_unavailable",
            Self::OutOfMemory => "out_of_memory",
            Self::NoImages => "no_images",
            Self::WrongSize => "wrong_size",
            Self::Stalled => "stalled",
            Self::Deadline => "deadline",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }
}
