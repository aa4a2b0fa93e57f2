//! Figures on how the installation does: `GET /generation/stats`, `rpc.stats`, and the topic `stats`.
//!
//! Over the jobs of all owners, and figures only: no job is named. A unit is the end of a field's name, or of the name
//! of the object that it stands in.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackendCondition, ErrorCode, Timestamp};
use crate::ids::{BackendId, Pool};
use crate::job::Priority;

/// How far back figures go. A few are offered rather than any, so that all who look share what was counted.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
    JsonSchema,
)]
pub enum StatsWindow {
    /// Five minutes.
    #[serde(rename = "5m")]
    FiveMinutes,
    /// A quarter of an hour.
    #[serde(rename = "15m")]
    QuarterHour,
    /// An hour.
    #[default]
    #[serde(rename = "1h")]
    Hour,
    /// Six hours.
    #[serde(rename = "6h")]
    SixHours,
    /// A day.
    #[serde(rename = "24h")]
    Day,
    /// A week.
    #[serde(rename = "7d")]
    Week,
}

impl StatsWindow {
    /// Every window, the shortest first.
    pub const ALL: [Self; 6] =
        [Self::FiveMinutes, Self::QuarterHour, Self::Hour, Self::SixHours, Self::Day, Self::Week];

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FiveMinutes => "5m",
            Self::QuarterHour => "15m",
            Self::Hour => "1h",
            Self::SixHours => "6h",
            Self::Day => "24h",
            Self::Week => "7d",
        }
    }

    /// Its length.
    pub fn seconds(self) -> u32 {
        match self {
            Self::FiveMinutes => 300,
            Self::QuarterHour => 900,
            Self::Hour => 3_600,
            Self::SixHours => 21_600,
            Self::Day => 86_400,
            Self::Week => 604_800,
        }
    }
}

impl fmt::Display for StatsWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StatsWindow {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|window| window.as_str() == word).ok_or(())
    }
}

/// How the installation does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct Stats {
    /// When this was counted, on the database's clock; at most some seconds ago.
    pub at: Timestamp,
    /// What `overall` and `backends` are about: the time before `at`.
    pub window: StatsWindow,
    /// Its length.
    pub window_seconds: u32,
    /// What waits and runs now.
    pub queue: QueueStats,
    /// What was completed within each of `5m`, `1h` and `24h`, whatever the window.
    pub throughput: Vec<Throughput>,
    /// All backends together.
    pub overall: OverallStats,
    /// Each backend that was heard of in the last 30 s, or that ended a job or an attempt within the window.
    pub backends: Vec<BackendStats>,
}

/// What waits and runs now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct QueueStats {
    /// Jobs that wait, for their first attempt or another.
    pub pending: u64,
    /// Jobs that are rendered.
    pub running: u64,
    /// Age of the job that was accepted first among those that wait; null if none does.
    pub oldest_pending_seconds: Option<f64>,
    /// The same by pool and priority, where there are any; of more than 100 the largest.
    pub by_pool_and_priority: Vec<QueueDepth>,
}

/// Jobs of one pool and priority that have not ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct QueueDepth {
    /// Which pool.
    pub pool: Pool,
    /// Which priority.
    pub priority: Priority,
    /// Jobs that wait.
    pub pending: u64,
    /// Jobs that are rendered.
    pub running: u64,
    /// Age of the job that was accepted first among those that wait; null if none does.
    pub oldest_pending_seconds: Option<f64>,
}

/// What was completed within a window.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct Throughput {
    /// Which window.
    pub window: StatsWindow,
    /// Its length.
    pub window_seconds: u32,
    /// The part of it that was counted, from its end: all of it, or what the last half million ended jobs cover.
    pub counted_seconds: f64,
    /// Jobs that were completed.
    pub jobs_completed: u64,
    /// Their images.
    pub images_completed: u64,
    /// Completed jobs a minute.
    pub jobs_per_minute: f64,
    /// Completed jobs an hour.
    pub jobs_per_hour: f64,
    /// Images of completed jobs a minute.
    pub images_per_minute: f64,
    /// Images of completed jobs an hour.
    pub images_per_hour: f64,
}

/// All backends together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct OverallStats {
    /// Jobs that were accepted within the window.
    pub jobs_accepted: u64,
    /// What ended.
    #[serde(flatten)]
    pub figures: WindowFigures,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct BackendStats {
    /// Which backend.
    pub id: BackendId,
    /// What it is doing; null if it was not heard of in the last 30 s.
    pub state: Option<BackendCondition>,
    /// Whether it was given a rest.
    pub paused: bool,
    /// Whether it is to be emptied.
    pub draining: bool,
    /// What ended there.
    #[serde(flatten)]
    pub figures: WindowFigures,
}

/// What ended within a window, as far as its jobs are still kept: who deletes a job takes it out of the figures too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct WindowFigures {
    /// The part of the window that was counted, from its end: all of it, or what the last half million ended jobs cover.
    pub counted_seconds: f64,
    /// Jobs that were completed.
    pub jobs_completed: u64,
    /// Jobs that failed for good.
    pub jobs_failed: u64,
    /// Jobs that were cancelled.
    pub jobs_cancelled: u64,
    /// Attempts that failed and were followed by another.
    pub retries: u64,
    /// Images of completed jobs.
    pub images_completed: u64,
    /// Sampling steps of completed jobs, as they were asked for.
    pub steps_completed: u64,
    /// Completed jobs a minute.
    pub jobs_per_minute: f64,
    /// Images of completed jobs a minute.
    pub images_per_minute: f64,
    /// Sampling steps of completed jobs for each second of their rendering; null if none was completed.
    pub steps_per_second: Option<f64>,
    /// Share of the time in which it rendered, 0 to 1; overall, of the time of all listed backends. Null overall if
    /// there is none.
    pub utilisation_ratio: Option<f64>,
    /// Failed jobs among those that completed or failed, 0 to 1; null if there is none.
    pub failure_ratio: Option<f64>,
    /// From the accept of a job to the start of its first attempt, over the ended jobs that were started; null if
    /// there is none.
    pub wait_seconds: Option<Spread>,
    /// From the start of the last attempt to the job's end, over the completed jobs; null if there is none.
    pub render_seconds: Option<Spread>,
    /// Failures by their code, those without any left out.
    pub errors: Vec<ErrorCount>,
}

/// How durations lie. Shares below are accurate to 5 %, or to 5 ms if that is more; mean and greatest are exact.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct Spread {
    /// On average.
    pub mean: f64,
    /// Half of them are no longer.
    pub p50: f64,
    /// Nine of ten are no longer.
    pub p90: f64,
    /// Nineteen of twenty are no longer.
    pub p95: f64,
    /// The longest.
    pub max: f64,
}

/// Failures of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
pub struct ErrorCount {
    /// Which kind.
    pub code: ErrorCode,
    /// Jobs that failed by it for good.
    pub jobs_failed: u64,
    /// Attempts that failed by it and were followed by another.
    pub retries: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_the_word_that_it_is_read_from() {
        for window in StatsWindow::ALL {
            assert_eq!(window.as_str().parse(), Ok(window));
            assert_eq!(serde_json::to_value(window).unwrap(), window.as_str());
        }
        assert_eq!("2h".parse::<StatsWindow>(), Err(()));
    }
}
