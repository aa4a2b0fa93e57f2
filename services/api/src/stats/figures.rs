//! From counts and sums to the figures that are told.

use std::collections::BTreeMap;

use stepcast_shared::messages::{ErrorCount, Spread, Status, WindowFigures};

use super::seconds;
use crate::db::stats::{EndedGroup, RetryGroup, WaitGroup, step_at};

/// What is known of a window, of one backend or of all.
#[derive(Clone, Debug, Default)]
pub struct Counted {
    /// How much of the window was counted.
    pub seconds: f64,
    completed: i64,
    failed: i64,
    cancelled: i64,
    retries: i64,
    images: i64,
    steps: i64,
    /// Milliseconds of rendering within the window.
    busy: i64,
    renders: Durations,
    waits: Durations,
    /// By code: jobs that failed, attempts that were followed by another.
    errors: BTreeMap<String, (i64, i64)>,
}

/// How many durations there are about each; milliseconds.
#[derive(Clone, Debug, Default)]
struct Durations {
    counts: BTreeMap<i64, i64>,
    sum: i64,
    max: i64,
}

impl Counted {
    /// Nothing in so many seconds.
    pub fn new(seconds: f64) -> Self {
        Self { seconds, ..Self::default() }
    }

    /// Counts jobs that have ended.
    pub fn ended(&mut self, group: &EndedGroup) {
        self.busy += group.busy_sum;
        let status = group.status.as_str();
        if let Some(took) = group.took {
            self.completed += group.jobs;
            self.images += group.images;
            self.steps += group.steps;
            self.renders.add(took, group.jobs, group.took_sum, group.took_max);
        } else if status == Status::Failed.as_str() {
            self.failed += group.jobs;
            if let Some(code) = &group.error_code {
                self.errors.entry(code.clone()).or_default().0 += group.jobs;
            }
        } else {
            self.cancelled += group.jobs;
        }
    }

    /// Counts how long jobs had waited.
    pub fn waited(&mut self, group: &WaitGroup) {
        self.waits.add(group.wait, group.jobs, group.wait_sum, group.wait_max);
    }

    /// Counts attempts that were followed by another.
    pub fn retried(&mut self, group: &RetryGroup) {
        self.retries += group.attempts;
        self.busy += group.busy_sum;
        if let Some(code) = &group.code {
            self.errors.entry(code.clone()).or_default().1 += group.attempts;
        }
    }

    /// Counts a render that goes on.
    pub fn renders(&mut self, millis: i64) {
        self.busy += millis;
    }

    /// What is told of it, where it is the work of so many backends.
    pub fn figures(&self, backends: usize) -> WindowFigures {
        let minutes = self.seconds / 60.0;
        let (completed, failed) = (count(self.completed), count(self.failed));
        let rendered = seconds(self.renders.sum);
        WindowFigures {
            counted_seconds: self.seconds,
            jobs_completed: completed,
            jobs_failed: failed,
            jobs_cancelled: count(self.cancelled),
            retries: count(self.retries),
            images_completed: count(self.images),
            steps_completed: count(self.steps),
            jobs_per_minute: round(completed as f64 / minutes),
            images_per_minute: round(self.images as f64 / minutes),
            steps_per_second: (rendered > 0.0).then(|| round(self.steps as f64 / rendered)),
            utilisation_ratio: (backends > 0)
                .then(|| round((seconds(self.busy) / self.seconds / backends as f64).clamp(0.0, 1.0))),
            failure_ratio: (completed + failed > 0)
                .then(|| round(failed as f64 / (completed + failed) as f64)),
            wait_seconds: self.waits.spread(),
            render_seconds: self.renders.spread(),
            errors: self.errors(),
        }
    }

    fn errors(&self) -> Vec<ErrorCount> {
        let known = self.errors.iter().filter_map(|(code, (jobs, retries))| {
            let code = serde_json::from_value(code.clone().into()).ok()?;
            Some(ErrorCount { code, jobs_failed: count(*jobs), retries: count(*retries) })
        });
        known.collect()
    }
}

impl Durations {
    fn add(&mut self, about: i64, count: i64, sum: i64, max: i64) {
        *self.counts.entry(about).or_default() += count;
        self.sum += sum;
        self.max = self.max.max(max);
    }

    fn spread(&self) -> Option<Spread> {
        let all: i64 = self.counts.values().sum();
        (all > 0).then(|| Spread {
            mean: round(seconds(self.sum) / all as f64),
            p50: self.below(all, 50),
            p90: self.below(all, 90),
            p95: self.below(all, 95),
            max: seconds(self.max),
        })
    }

    /// What this share of all, in hundredths, does not exceed.
    fn below(&self, all: i64, share: i64) -> f64 {
        let mut left = ((all * share + 99) / 100).max(1);
        for (about, count) in &self.counts {
            left -= count;
            if left <= 0 {
                // Half-way to the next is right on average.
                return seconds((about + step_at(*about) / 2).min(self.max));
            }
        }
        seconds(self.max)
    }
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// To what is worth reading: four digits behind the point.
fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stepcast_shared::messages::ErrorCode;

    use super::*;

    fn completed(took: &[i64]) -> Counted {
        let mut counted = Counted::new(60.0);
        for &took in took {
            let about = took / step_at(took) * step_at(took);
            counted.ended(&EndedGroup {
                status: "completed".to_owned(),
                took: Some(about),
                jobs: 1,
                took_sum: took,
                took_max: took,
                busy_sum: took,
                steps: 20,
                images: 2,
                ..EndedGroup::default()
            });
        }
        counted
    }

    #[test]
    fn rates_are_over_what_was_counted_and_ratios_over_what_there_was() {
        let mut counted = completed(&[4_000; 6]);
        counted.ended(&EndedGroup {
            status: "failed".to_owned(),
            error_code: Some("rejected".to_owned()),
            jobs: 2,
            took_sum: 100,
            busy_sum: 100,
            ..EndedGroup::default()
        });
        counted.ended(&EndedGroup { status: "cancelled".to_owned(), jobs: 3, ..EndedGroup::default() });
        counted.retried(&RetryGroup {
            backend: None,
            code: Some("out_of_memory".to_owned()),
            attempts: 4,
            busy_sum: 5_900,
        });
        let figures = counted.figures(2);
        assert_eq!((figures.jobs_completed, figures.jobs_failed, figures.jobs_cancelled), (6, 2, 3));
        assert_eq!((figures.images_completed, figures.steps_completed, figures.retries), (12, 120, 4));
        assert_eq!((figures.jobs_per_minute, figures.images_per_minute), (6.0, 12.0));
        assert_eq!(figures.steps_per_second, Some(5.0));
        assert_eq!(figures.failure_ratio, Some(0.25));
        assert_eq!(figures.utilisation_ratio, Some(0.25), "30 s of twice 60");
        let error = |code, jobs_failed, retries| ErrorCount { code, jobs_failed, retries };
        assert_eq!(figures.errors, [error(ErrorCode::OutOfMemory, 0, 4), error(ErrorCode::Rejected, 2, 0)]);
        assert_eq!(figures.wait_seconds, None);
    }

    #[test]
    fn nothing_has_no_ratios() {
        let figures = Counted::new(300.0).figures(0);
        assert_eq!((figures.jobs_completed, figures.jobs_per_minute), (0, 0.0));
        assert_eq!(
            (figures.failure_ratio, figures.utilisation_ratio, figures.steps_per_second),
            (None, None, None)
        );
        assert_eq!((figures.render_seconds, figures.errors.len()), (None, 0));
    }

    proptest! {
        #[test]
        fn shares_are_accurate(mut took in proptest::collection::vec(0_i64..10_000_000, 1..200)) {
            let spread = completed(&took).figures(1).render_seconds.unwrap();
            took.sort_unstable();
            for (share, told) in [(50, spread.p50), (90, spread.p90), (95, spread.p95)] {
                let exact = seconds(took[(took.len() * share).div_ceil(100) - 1]);
                prop_assert!((told - exact).abs() <= f64::max(exact * 0.05, 0.005), "{told} for {exact}");
            }
            prop_assert!((spread.max - seconds(*took.last().unwrap())).abs() < 1e-9);
        }
    }
}
