//! How long renders take, from how long the last ones really took.
//!
//! A render takes a time of its own for whatever it paints, and a time for each megapixel-step. Both are read off the
//! last jobs of the same backend and checkpoint: the slope is the median over all pairs of jobs (Theil and Sen), so that
//! a job which met a heavy neighbour, or whose poller was away, moves nothing.

use std::collections::HashMap;

use stepcast_shared::job::JobRequest;

/// Jobs of one kind that are looked at: the latest.
const MOST: usize = 20;
/// Share of the largest job by which two must differ to tell a slope.
const DISTINCT: f64 = 0.2;

/// How much there is to render, in megapixel-steps.
///
/// It need not be exact: what it leaves out is in the measured times of such jobs, too.
pub fn megapixel_steps(request: &JobRequest) -> f64 {
    let megapixels = f64::from(request.width) * f64::from(request.height) / 1e6
        * f64::from(request.batch_size)
        * f64::from(request.n_iter);
    let second =
        second_pass(request).map(|(steps, scale)| f64::from(steps.unwrap_or(request.steps)) * scale.powi(2));
    megapixels * (f64::from(request.steps) + second.unwrap_or_default())
}

/// Sampling steps of all passes, as asked for. Images that are rendered at once share theirs.
pub fn sampling_steps(request: &JobRequest) -> u64 {
    let second = second_pass(request).map(|(steps, _)| steps.unwrap_or(request.steps));
    (u64::from(request.steps) + u64::from(second.unwrap_or_default())) * u64::from(request.n_iter)
}

/// Steps of the second pass, where they are not those of the first, and the factor to its size; `None` without one.
fn second_pass(request: &JobRequest) -> Option<(Option<u32>, f64)> {
    let option = |name: &str| request.sdnext.get(name);
    if option("enable_hr")?.as_bool() != Some(true) {
        return None;
    }
    let steps = option("hr_second_pass_steps").and_then(serde_json::Value::as_u64);
    let steps = steps.and_then(|steps| u32::try_from(steps).ok()).filter(|steps| *steps > 0);
    let scale = option("hr_scale").and_then(serde_json::Value::as_f64).unwrap_or(1.0);
    Some((steps, scale))
}

/// A job that was completed.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Where.
    pub backend: String,
    /// Checkpoint that it asked for.
    pub model: Option<String>,
    /// In megapixel-steps, where known.
    pub work: Option<f64>,
    /// From its start to its end.
    pub seconds: f64,
}

/// What the last jobs have taught.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    by_model: HashMap<(String, String), Fit>,
    by_backend: HashMap<String, Fit>,
    overall: Option<Fit>,
    loads: HashMap<String, f64>,
}

impl Timings {
    /// Learns from completed jobs, oldest first.
    pub fn learn(samples: &[Sample]) -> Self {
        let mut by_model: HashMap<(&str, &str), Vec<&Sample>> = HashMap::new();
        let mut by_backend: HashMap<&str, Vec<&Sample>> = HashMap::new();
        let mut swaps: Vec<(&Sample, &str)> = Vec::new();
        let mut loaded: HashMap<&str, &str> = HashMap::new();
        for sample in samples {
            let before = loaded.get(sample.backend.as_str()).copied();
            let model = sample.model.as_deref().or(before);
            if let Some(model) = model {
                loaded.insert(&sample.backend, model);
            }
            if let (Some(before), Some(model)) = (before, model)
                && before != model
            {
                swaps.push((sample, model));
                continue;
            }
            by_backend.entry(&sample.backend).or_default().push(sample);
            if let Some(model) = model {
                by_model.entry((&sample.backend, model)).or_default().push(sample);
            }
        }
        let mut timings = Self::default();
        for ((backend, model), samples) in by_model {
            let fit = Fit::of(&samples).map(|fit| ((backend.to_owned(), model.to_owned()), fit));
            timings.by_model.extend(fit);
        }
        for (backend, samples) in by_backend {
            timings.by_backend.extend(Fit::of(&samples).map(|fit| (backend.to_owned(), fit)));
        }
        timings.overall = Fit::of(&samples.iter().collect::<Vec<_>>());
        timings.learn_loads(&swaps);
        timings
    }

    /// What a job took beyond the expected whose checkpoint had to be loaded first.
    fn learn_loads(&mut self, swaps: &[(&Sample, &str)]) {
        let mut beyond: HashMap<&str, Vec<f64>> = HashMap::new();
        for (sample, model) in swaps {
            if let Some(expected) = self.seconds(&sample.backend, Some(model), sample.work) {
                beyond.entry(&sample.backend).or_default().push((sample.seconds - expected).max(0.0));
            }
        }
        self.loads = beyond
            .into_iter()
            .filter_map(|(backend, seconds)| Some((backend.to_owned(), median(seconds)?)))
            .collect();
    }

    /// How long such a job takes on a backend: by its own jobs with this checkpoint, or else all its own, or else
    /// everybody's. `None` if nothing was completed anywhere.
    pub fn seconds(&self, backend: &str, model: Option<&str>, work: Option<f64>) -> Option<f64> {
        let of_model = model.and_then(|model| self.by_model.get(&(backend.to_owned(), model.to_owned())));
        let fit = of_model.or_else(|| self.by_backend.get(backend)).or(self.overall.as_ref())?;
        Some(fit.seconds(work))
    }

    /// How much longer a job takes on a backend that has to load another checkpoint first; 0 until that was seen.
    pub fn load_seconds(&self, backend: &str) -> f64 {
        self.loads.get(backend).copied().unwrap_or(0.0)
    }
}

/// Seconds as a line over megapixel-steps.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Fit {
    base: f64,
    slope: f64,
    /// For jobs of unknown size.
    typical: f64,
}

impl Fit {
    fn of(samples: &[&Sample]) -> Option<Self> {
        let latest = &samples[samples.len().saturating_sub(MOST)..];
        let typical = median(latest.iter().map(|sample| sample.seconds).collect())?;
        let points: Vec<(f64, f64)> =
            latest.iter().filter_map(|sample| Some((sample.work?, sample.seconds))).collect();
        let largest = points.iter().map(|(work, _)| *work).fold(0.0, f64::max);
        let mut slopes = Vec::new();
        for (index, one) in points.iter().enumerate() {
            for other in &points[index + 1..] {
                let apart = other.0 - one.0;
                if apart.abs() > DISTINCT * largest {
                    slopes.push((other.1 - one.1) / apart);
                }
            }
        }
        if let Some(slope) = median(slopes).filter(|slope| *slope >= 0.0)
            && let Some(base) = median(points.iter().map(|(work, seconds)| seconds - slope * work).collect())
            && base >= 0.0
        {
            return Some(Self { base, slope, typical });
        }
        // All alike, or too noisy to tell: then a job half as large takes half as long.
        let rates = points.iter().filter(|(work, _)| *work > 0.0).map(|(work, seconds)| seconds / work);
        Some(match median(rates.collect()) {
            Some(slope) => Self { base: 0.0, slope, typical },
            None => Self { base: typical, slope: 0.0, typical },
        })
    }

    fn seconds(&self, work: Option<f64>) -> f64 {
        work.map_or(self.typical, |work| self.base + self.slope * work)
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    let lower = values[(values.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(backend: &str, model: Option<&str>, work: f64, seconds: f64) -> Sample {
        Sample { backend: backend.to_owned(), model: model.map(str::to_owned), work: Some(work), seconds }
    }

    fn close(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value - expected).abs() < 1e-6)
    }

    #[test]
    fn a_fixed_part_and_a_rate_are_told_apart() {
        let samples: Vec<_> =
            [4.0, 8.0, 2.0, 16.0].map(|work| sample("gpu", None, work, 1.5 + 0.25 * work)).into();
        let timings = Timings::learn(&samples);
        assert!(close(timings.seconds("gpu", None, Some(100.0)), 26.5));
        assert!(close(timings.seconds("gpu", None, None), 3.0), "of unknown size: as the typical one");
    }

    #[test]
    fn jobs_that_are_all_alike_tell_a_rate() {
        let timings = Timings::learn(&vec![sample("gpu", None, 5.0, 2.0); 3]);
        assert!(close(timings.seconds("gpu", None, Some(5.0)), 2.0));
        assert!(close(timings.seconds("gpu", None, Some(10.0)), 4.0));
    }

    #[test]
    fn one_odd_job_moves_nothing() {
        let mut samples: Vec<_> =
            (1..=9).map(|n| sample("gpu", None, f64::from(n), 1.0 + f64::from(n))).collect();
        samples.push(sample("gpu", None, 5.0, 600.0));
        assert!(
            Timings::learn(&samples)
                .seconds("gpu", None, Some(5.0))
                .is_some_and(|it| (5.5..7.0).contains(&it))
        );
    }

    #[test]
    fn the_latest_count_and_what_is_long_gone_does_not() {
        let mut samples = vec![sample("gpu", None, 5.0, 50.0); 100];
        samples.extend(vec![sample("gpu", None, 5.0, 2.0); MOST]);
        assert!(close(Timings::learn(&samples).seconds("gpu", None, Some(5.0)), 2.0));
    }

    #[test]
    fn each_backend_and_checkpoint_has_its_own_pace_and_strangers_have_the_common_one() {
        let timings = Timings::learn(&[
            sample("fast", Some("a"), 10.0, 1.0),
            sample("slow", Some("a"), 10.0, 30.0),
            sample("fast", Some("b"), 10.0, 9.0),
            sample("fast", Some("b"), 10.0, 4.0),
            sample("fast", None, 10.0, 4.0),
        ]);
        assert!(close(timings.seconds("fast", Some("a"), Some(10.0)), 1.0));
        assert!(close(timings.seconds("fast", Some("b"), Some(10.0)), 4.0));
        assert!(close(timings.seconds("slow", Some("b"), Some(10.0)), 30.0), "at least it is this backend");
        assert!(close(timings.seconds("new", None, Some(10.0)), 4.0));
        assert!(close(Some(timings.load_seconds("fast")), 5.0), "the first `b` took that much longer");
        assert!(close(Some(timings.load_seconds("slow")), 0.0));
        assert_eq!(Timings::learn(&[]).seconds("gpu", None, Some(1.0)), None, "nothing was measured");
    }

    #[test]
    fn work_grows_with_steps_size_images_and_the_second_pass() {
        let work = |more: serde_json::Value| {
            let mut body = json!({"prompt": "x", "steps": 10, "width": 1000, "height": 1000});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            megapixel_steps(&serde_json::from_value(body).unwrap())
        };
        assert!(close(Some(work(json!({}))), 10.0));
        assert!(close(Some(work(json!({"batch_size": 2, "n_iter": 3}))), 60.0));
        assert!(close(Some(work(json!({"sdnext": {"enable_hr": true, "hr_scale": 2.0}}))), 50.0));
        let short = json!({"sdnext": {"enable_hr": true, "hr_second_pass_steps": 5}});
        assert!(close(Some(work(short)), 15.0));
    }
}
