//! Follows a job on a server that tells tasks apart: whose work runs is told, and nothing of it is inferred.
//!
//! The counters are those of A1111 and Forge (`modules/shared_state.py`, `modules/progress.py`,
//! `modules/sd_samplers_common.py`): passes are numbered over the whole job, and `sampling_step` is the number of the
//! step that was done last, from 0. So the last number means that nothing is left to sample, and decoding begins; 0 may
//! mean that nothing has begun, with `sampling_steps` still those of an earlier job.

use stepcast_shared::messages::Stage;

use super::{Phase, Tracker, sight::Sight};
use crate::{
    sample::{Observation, TaskSample},
    weights::Cost,
};

/// Keeps a fraction that stands for a whole step from falling just short of it.
const ROUNDING: f64 = 1e-6;

impl Tracker {
    /// Takes in what the server says of our task.
    pub(super) fn take_in_task(&mut self, task: &TaskSample) {
        match task {
            TaskSample::Unknown => {}
            TaskSample::Queued => {
                // It waits for another's work: that is how it should be, however long it takes.
                self.stage = Stage::Preparing;
                self.changed = self.now;
            }
            TaskSample::Active { fraction, state } => {
                let seen = state.clone().unwrap_or_else(|| self.spread(*fraction));
                let seen = Observation { sampling_step: steps_done(&seen), ..seen };
                self.phase = Phase::Begun;
                self.confirmed = true;
                self.interrupted |= seen.interrupted;
                self.follow_task(&seen);
                self.note_change(&seen);
            }
            TaskSample::Completed => {
                self.phase = Phase::Begun;
                self.confirmed = true;
                self.sampled_all();
            }
        }
    }

    fn follow_task(&mut self, seen: &Observation) {
        let started = self.passes.current().is_some();
        match Sight::of(seen) {
            // The checkpoint is loaded within the task, and nothing tells when that is over.
            Sight::Preparing | Sight::Idle if !started && self.segments[0].cost == Cost::Loading => {
                self.take_in(Sight::Loading);
            }
            Sight::Idle if !started => {
                self.take_in(Sight::Preparing);
            }
            Sight::Finished => self.sampled_all(),
            sight => {
                self.take_in(sight);
                let Sight::Pass { step, steps, .. } = sight else { return };
                if steps > 1 && step == steps && self.passes.current().is_some_and(|pass| !pass.extra) {
                    self.stage = if self.passes.hires_follows() { Stage::Hires } else { Stage::Decoding };
                    self.passes.sampled();
                    self.follow_pass();
                }
            }
        }
    }

    /// Nothing is left but what follows the last decode.
    fn sampled_all(&mut self) {
        if self.interrupted {
            // It is over, and not because its steps were done.
            return;
        }
        self.passes.finish();
        self.stage = Stage::Saving;
        self.enter(Cost::Saving, None);
    }

    /// The state that a fraction of the whole job stands for: passes weigh the same there, and steps within a pass.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a fraction of a bounded number of passes, and of steps that fit"
    )]
    fn spread(&self, fraction: f64) -> Observation {
        let planned = self.passes.planned();
        let count = u32::try_from(planned.len()).unwrap_or(u32::MAX);
        let at = fraction.clamp(0.0, 1.0) * f64::from(count) + ROUNDING;
        let number = at as u32;
        let steps = planned.get(number as usize).map_or(0, |pass| pass.steps);
        Observation {
            job: "task".to_owned(),
            progress: fraction,
            sampling_step: ((at - f64::from(number)) * f64::from(steps)) as u32,
            sampling_steps: steps,
            job_no: number,
            job_count: count,
            ..Observation::default()
        }
    }
}

/// How many steps of the pass are done.
fn steps_done(seen: &Observation) -> u32 {
    let last = seen.sampling_step;
    if last == 0 { 0 } else { last.saturating_add(1).min(seen.sampling_steps) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};
    use stepcast_shared::messages::Source;

    use super::*;
    use crate::{
        plan::{Plan, PlanInput},
        sample::Sample,
        tracker::Progress,
        weights::Weights,
    };

    struct Job {
        tracker: Tracker,
        at: Duration,
        last: f64,
    }

    impl Job {
        fn new(body: &Value) -> Self {
            let plan = Plan::new(&PlanInput::from_body(body, false));
            Self { tracker: Tracker::new(plan, &Weights::default(), None), at: Duration::ZERO, last: 0.0 }
        }

        fn is_told(&mut self, task: TaskSample) -> Progress {
            self.at += Duration::from_millis(250);
            self.tracker.observe(self.at, &Sample::Task(task));
            let progress = self.tracker.progress(self.at);
            assert!(progress.fraction >= self.last && progress.fraction < 1.0, "{progress:?}");
            self.last = progress.fraction;
            progress
        }

        fn runs(&mut self, number: i32, count: i32, step: u32, steps: u32) -> Progress {
            let state = json!({"job": "scripts_txt2img", "job_no": number, "job_count": count,
                "sampling_step": step, "sampling_steps": steps});
            self.is_told(TaskSample::Active { fraction: 0.0, state: Some(json!({"state": state}).into()) })
        }
    }

    #[test]
    fn a_queued_task_holds_still_and_never_stalls() {
        let mut job = Job::new(&json!({"steps": 8}));
        job.is_told(TaskSample::Unknown);
        for _ in 0..4000 {
            let progress = job.is_told(TaskSample::Queued);
            assert_eq!((progress.stage, progress.source, progress.step), (Stage::Preparing, Source::Held, 0));
            assert!(progress.fraction.abs() < 1e-9 && progress.stalled.is_none());
        }
    }

    #[test]
    fn passes_and_steps_are_those_of_the_server() {
        let mut job = Job::new(&json!({"steps": 8, "n_iter": 3}));
        // Steps of an earlier job stand there before the first of this one.
        assert_eq!(job.runs(0, -1, 0, 50).stage, Stage::Preparing);
        assert_eq!(job.runs(0, 3, 0, 50).steps, 24);
        let first = job.runs(0, 3, 4, 8);
        assert_eq!(
            (first.stage, first.image, first.step, first.source),
            (Stage::Sampling, 1, 5, Source::Measured)
        );
        assert_eq!(job.runs(0, 3, 7, 8).stage, Stage::Decoding);
        let second = job.runs(1, 3, 2, 8);
        assert_eq!((second.stage, second.image, second.step), (Stage::Sampling, 2, 11));
        // The third pass is missed altogether but for its end.
        let end = job.runs(3, 3, 0, 8);
        assert_eq!((end.stage, end.image, end.step, end.steps), (Stage::Saving, 3, 24, 24));
        assert_eq!(job.is_told(TaskSample::Completed).stage, Stage::Saving);
    }

    #[test]
    fn a_fraction_alone_tells_pass_and_step() {
        let mut job = Job::new(&json!({"steps": 8, "n_iter": 2}));
        let told = |fraction| TaskSample::Active { fraction, state: None };
        assert_eq!(job.is_told(told(0.0)).stage, Stage::Preparing);
        assert_eq!(job.is_told(told(0.25)).step, 5, "step 4, counted from 0, of the first pass");
        let second = job.is_told(told(0.5 + 3.0 / 16.0));
        assert_eq!((second.image, second.step), (2, 12));
        assert_eq!(job.is_told(told(1.0)).stage, Stage::Saving);
    }

    #[test]
    fn steps_that_differ_from_the_plan_are_believed() {
        let mut job = Job::new(&json!({"steps": 20}));
        assert_eq!(job.runs(0, 1, 3, 11).steps, 11);
    }

    #[test]
    fn what_is_not_said_of_our_task_moves_nothing() {
        let mut job = Job::new(&json!({"steps": 8}));
        let before = job.runs(0, 1, 3, 8);
        let held = job.is_told(TaskSample::Unknown);
        assert_eq!((held.step, held.stage), (before.step, before.stage));
        assert_ne!(held.source, Source::Measured);
    }

    #[test]
    fn an_interrupt_that_shows_is_remembered() {
        let mut job = Job::new(&json!({"steps": 8}));
        let state = json!({"state": {"job": "a", "job_count": 1, "interrupted": true}});
        job.is_told(TaskSample::Active { fraction: 0.0, state: Some(state.into()) });
        assert!(job.tracker.interrupted_seen());
    }
}
