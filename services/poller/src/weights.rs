//! What a backend's own timings have taught: seconds per unit of each stage.
//!
//! The same step takes 20 ms on one server and a minute on another, so a bar whose stages are weighted by fixed
//! shares is wrong everywhere. Each finished job moves these averages; recent jobs count most, so that a new card or
//! another checkpoint is learnt within a few jobs.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{plan::Plan, tracker::timeline};

/// Version of the stored form; another one is not read.
const VERSION: u64 = 1;
/// Share of a new timing in the average.
const ALPHA: f64 = 0.3;
/// A figure this many times off counts as only that much off: one job beside a heavy neighbour teaches little, and a
/// slower card is still learnt within a few jobs.
const MAX_SURPRISE: f64 = 2.0;
/// Seconds per unit beyond which a figure is junk: no step takes a day.
const MAX_SECONDS: f64 = 86_400.0;

/// What a timing is about, and its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cost {
    /// Loading a checkpoint, per load.
    Loading,
    /// From the request's arrival to the first pass, per job.
    Preparing,
    /// A step of the first pass, per megapixel of the batch.
    Sampling,
    /// A step of the second pass, per megapixel of the batch.
    Hires,
    /// Detailer passes, per image.
    Detailing,
    /// Decoding, per megapixel of the batch.
    Decoding,
    /// From the last decode to the answer, per image.
    Saving,
}

/// Durations that one job has shown, to learn from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timings {
    entries: Vec<(Cost, f64, f64)>,
}

/// Learnt seconds per unit for each stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    entries: [Learnt; Cost::ALL.len()],
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Learnt {
    seconds: f64,
    jobs: u32,
}

impl Cost {
    const ALL: [Self; 7] = [
        Self::Loading,
        Self::Preparing,
        Self::Sampling,
        Self::Hires,
        Self::Detailing,
        Self::Decoding,
        Self::Saving,
    ];

    /// The word by which it is stored and counted.
    pub fn name(self) -> &'static str {
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

    /// Seconds per unit before anything is learnt. The recordings' server (a tiny model on a processor) took 0.13 to
    /// 0.35 s for a step at 512 x 512 and 0.3 to 0.8 s for its decode; what counts here is the ratio between stages,
    /// which a larger model on a graphics card keeps within a factor of a few.
    fn default_seconds(self) -> f64 {
        match self {
            Self::Loading => 3.0,
            Self::Preparing => 0.06,
            Self::Sampling | Self::Hires => 0.9,
            Self::Detailing => 2.0,
            Self::Decoding => 1.6,
            Self::Saving => 0.05,
        }
    }
}

impl Timings {
    /// Adds a duration that covered so many units. Nonsense (no units, no time) is left out.
    pub fn add(&mut self, cost: Cost, units: f64, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if units.is_finite() && units > 0.0 && seconds > 0.0 {
            self.entries.push((cost, units, seconds));
        }
    }

    /// How long each kind took over the whole job, of those that were seen.
    pub fn totals(&self) -> impl Iterator<Item = (Cost, Duration)> {
        Cost::ALL.into_iter().filter_map(|cost| {
            let of_kind = self.entries.iter().filter(|(kind, ..)| *kind == cost);
            let seconds = of_kind.map(|(.., seconds)| seconds).sum::<f64>();
            Some((cost, Duration::try_from_secs_f64(seconds).ok().filter(|took| !took.is_zero())?))
        })
    }

    /// Seconds per unit of one kind over the whole job, if it was seen.
    pub fn seconds_per_unit(&self, cost: Cost) -> Option<f64> {
        let of_kind = self.entries.iter().filter(|(kind, ..)| *kind == cost);
        let (units, seconds) = of_kind.fold((0.0, 0.0), |sum, entry| (sum.0 + entry.1, sum.1 + entry.2));
        (units > 0.0).then(|| seconds / units).filter(|seconds| is_sane(*seconds))
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self { entries: Cost::ALL.map(|cost| Learnt { seconds: cost.default_seconds(), jobs: 0 }) }
    }
}

impl Weights {
    /// Reads the stored form. Whatever is missing, odd, or of another version falls back to its default.
    pub fn from_json(bytes: &[u8]) -> Self {
        let stored = serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        let mut weights = Self::default();
        if stored["version"].as_u64() == Some(VERSION) {
            for (cost, entry) in Cost::ALL.into_iter().zip(&mut weights.entries) {
                if let Ok(learnt) = Learnt::deserialize(&stored[cost.name()])
                    && is_sane(learnt.seconds)
                {
                    *entry = learnt;
                }
            }
        }
        weights
    }

    /// The form to store: a JSON object with a version.
    pub fn to_json(&self) -> Vec<u8> {
        let mut stored = serde_json::Map::from_iter([("version".to_owned(), VERSION.into())]);
        for (cost, Learnt { seconds, jobs }) in Cost::ALL.into_iter().zip(&self.entries) {
            stored.insert(cost.name().to_owned(), serde_json::json!({"seconds": seconds, "jobs": jobs}));
        }
        serde_json::to_vec_pretty(&Value::Object(stored)).expect("a map with string keys is JSON")
    }

    /// Takes in what a completed job has shown. Jobs that ended otherwise teach nothing and are not to be given here.
    pub fn learn(&mut self, timings: &Timings) {
        for (cost, entry) in Cost::ALL.into_iter().zip(&mut self.entries) {
            if let Some(seconds) = timings.seconds_per_unit(cost) {
                if entry.jobs == 0 {
                    entry.seconds = seconds;
                } else {
                    let seconds = seconds.clamp(entry.seconds / MAX_SURPRISE, entry.seconds * MAX_SURPRISE);
                    entry.seconds += ALPHA * (seconds - entry.seconds);
                }
                entry.jobs = entry.jobs.saturating_add(1);
            }
        }
    }

    /// Seconds per unit.
    pub fn seconds(&self, cost: Cost) -> f64 {
        self.entries[cost as usize].seconds
    }

    /// Whether the figure was learnt from this backend rather than assumed.
    pub fn is_learnt(&self, cost: Cost) -> bool {
        self.entries[cost as usize].jobs > 0
    }

    /// How long a request should take on this backend, from its POST to the answer.
    pub fn estimate(&self, plan: &Plan) -> Duration {
        let seconds: f64 = timeline::lay_out(plan).iter().map(|s| s.units * self.seconds(s.cost)).sum();
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

fn is_sane(seconds: f64) -> bool {
    seconds.is_finite() && seconds > 0.0 && seconds < MAX_SECONDS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::PlanInput;

    fn sampling(seconds: f64) -> Timings {
        let mut timings = Timings::default();
        timings.add(Cost::Sampling, 2.0, Duration::from_secs_f64(2.0 * seconds));
        timings
    }

    #[test]
    fn the_first_job_replaces_the_assumption_and_later_ones_move_it() {
        let mut weights = Weights::default();
        assert!(!weights.is_learnt(Cost::Sampling));
        weights.learn(&sampling(4.0));
        assert!((weights.seconds(Cost::Sampling) - 4.0).abs() < 1e-9);
        weights.learn(&sampling(5.0));
        assert!((weights.seconds(Cost::Sampling) - 4.3).abs() < 1e-9);
        assert!(weights.is_learnt(Cost::Sampling) && !weights.is_learnt(Cost::Decoding));
        weights.learn(&sampling(4_300.0));
        assert!(
            (weights.seconds(Cost::Sampling) - 5.59).abs() < 1e-9,
            "an outlier counts as twice the average"
        );
    }

    #[test]
    fn the_stored_form_reads_back() {
        let mut weights = Weights::default();
        weights.learn(&sampling(0.1234));
        assert_eq!(Weights::from_json(&weights.to_json()), weights);
    }

    #[test]
    fn junk_reads_as_defaults() {
        let junk = [
            "",
            "[]",
            r#"{"version":2,"sampling":{"seconds":9.0,"jobs":3}}"#,
            r#"{"version":1,"sampling":{"seconds":-9.0,"jobs":3},"hires":{"seconds":"x"},"decoding":7}"#,
            r#"{"version":1,"saving":{"seconds":1e99,"jobs":1},"loading":{"seconds":1.0,"jobs":-1}}"#,
        ];
        for junk in junk {
            assert_eq!(Weights::from_json(junk.as_bytes()), Weights::default(), "{junk}");
        }
    }

    #[test]
    fn estimates_follow_steps_and_size() {
        let weights = Weights::default();
        let small = PlanInput { steps: 20, width: 512, height: 512, ..PlanInput::default() };
        let estimate = |input: &PlanInput| weights.estimate(&Plan::new(input));
        let twice = PlanInput { n_iter: 2, ..small.clone() };
        assert!(estimate(&twice) > estimate(&small).mul_f64(1.8));
        assert!(estimate(&small) > Duration::from_secs(1) && estimate(&small) < Duration::from_secs(20));
    }
}
