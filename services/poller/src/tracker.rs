//! From raw polls to progress that only grows and says how it knows.
//!
//! SD.Next's own progress is global to the server, belongs to one stage at a time, restarts with every pass, reads
//! idle between stages and keeps showing what an earlier job left behind. So the tracker never believes a number
//! alone: it holds the plan of the request, counts the passes itself, and moves along a timeline whose stages weigh
//! what this backend took for them before. It is pure (polls and the time since the POST go in, [`Progress`] comes
//! out), and it never says 1.0 or that a job has ended: only the answer of the POST can.
//!
//! What it cannot see: a sample names no client, so a pass of another's job that begins after our POST looks like
//! ours. Whatever showed just before the POST can be told apart, and is ([`Tracker::new`]).

mod clock;
mod follow;
mod passes;
mod rate;
mod seen;
mod sight;
mod task;
pub(crate) mod timeline;

pub use self::seen::Seen;

use std::time::Duration;

use stepcast_shared::messages::{Source, Stage};

use self::{
    clock::Clock,
    passes::Passes,
    rate::Rate,
    sight::{PassId, Sight},
    timeline::{Costs, Position, Segment},
};
use crate::{
    plan::Plan,
    sample::{Observation, Sample},
    weights::{Cost, Timings, Weights},
};

/// The most that a job without an answer can show.
const CEILING: f64 = 0.999;
/// How far an estimate may fill the step or stage at hand; the rest is for the measurement.
const ESTIMATE_CEILING: f64 = 0.9;

/// Where a job stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Share of the whole job, 0.0 to below 1.0, never less than before.
    pub fraction: f64,
    /// What runs, as last seen.
    pub stage: Stage,
    /// Number of the image being made, from 1; of a batch rendered at once, its first.
    pub image: u32,
    /// Images that the job makes.
    pub images: u32,
    /// Steps done of the whole job: with three iterations of 12 steps, step 5 of the second is 17.
    pub step: u32,
    /// Steps of the whole job, all passes together: 36 in that case, and the second pass adds its own.
    pub steps: u32,
    /// Steps a second of the pass at hand, once two of its steps were seen.
    pub steps_per_second: Option<f64>,
    /// Time left, once there is a rate of this job or of earlier ones to tell it from.
    pub eta: Option<Duration>,
    /// How `fraction` is known.
    pub source: Source,
    /// Age of the last change, once it is too old for the stage at hand.
    pub stalled: Option<Duration>,
}

/// Follows one attempt.
#[derive(Clone, Debug)]
pub struct Tracker {
    plan: Plan,
    weights: Weights,
    segments: Vec<Segment>,
    passes: Passes,
    baseline: Option<Observation>,
    phase: Phase,
    interrupted: bool,
    /// Measured position, and the fraction that stands for it.
    position: Position,
    fraction: f64,
    /// The greatest fraction ever handed out.
    shown: f64,
    step_shown: u32,
    stage: Stage,
    rate: Rate,
    /// Measured seconds per unit of this job's passes: first kind, second kind.
    measured: [Option<f64>; 2],
    clock: Clock,
    now: Duration,
    /// When the position last moved, and when anything of ours last changed.
    moved: Duration,
    changed: Duration,
    last: Option<Observation>,
    /// Whether the newest poll showed our job.
    confirmed: bool,
    seen: Seen,
}

/// Whose work the polls show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Another's: it was running at the POST, and nothing since shows that it has ended.
    Foreign,
    /// Nobody's so far.
    Waiting,
    /// Ours.
    Begun,
}

impl Tracker {
    /// Follows a request of this plan on a backend of these weights.
    ///
    /// `baseline` is the last thing seen before the POST. What still looks the same afterwards is left over from
    /// before: a skip leaves step 9 of 40 on an idle server, an exception leaves `Process` running.
    pub fn new(plan: Plan, weights: &Weights, baseline: Option<&Sample>) -> Self {
        let baseline = match baseline {
            Some(Sample::Seen(seen)) => Some(seen.clone()),
            _ => None,
        };
        let segments = timeline::lay_out(&plan);
        Self {
            weights: weights.clone(),
            stage: if segments[0].cost == Cost::Loading { Stage::Loading } else { Stage::Preparing },
            passes: Passes::new(&plan),
            phase: match &baseline {
                Some(seen) if seen.is_active() => Phase::Foreign,
                _ => Phase::Waiting,
            },
            plan,
            segments,
            baseline,
            interrupted: false,
            position: Position::default(),
            fraction: 0.0,
            shown: 0.0,
            step_shown: 0,
            rate: Rate::default(),
            measured: [None; 2],
            clock: Clock::default(),
            now: Duration::ZERO,
            moved: Duration::ZERO,
            changed: Duration::ZERO,
            last: None,
            confirmed: false,
            seen: Seen::default(),
        }
    }

    /// Takes in a poll. `at` is the time since the POST; a time before an earlier one counts as that one.
    pub fn observe(&mut self, at: Duration, sample: &Sample) {
        self.now = self.now.max(at);
        self.confirmed = false;
        match sample {
            Sample::Seen(seen) => self.take_in_server(seen),
            Sample::Task(task) => self.take_in_task(task),
            Sample::Missed => return,
        }
        self.note_moments();
        self.clock.poll(self.now);
    }

    fn take_in_server(&mut self, seen: &Observation) {
        if !self.is_left_over(seen) {
            let sight = Sight::of(seen);
            if self.phase == Phase::Foreign && shows_an_end(sight) {
                self.phase = Phase::Waiting;
            }
            if self.phase != Phase::Foreign {
                self.confirmed = self.take_in(sight);
                if self.confirmed {
                    self.phase = Phase::Begun;
                }
                self.interrupted |= seen.interrupted && self.begun();
            }
        }
        if self.confirmed {
            self.note_change(seen);
        }
    }

    /// Keeps what was seen of our job, and when that last was something new.
    fn note_change(&mut self, seen: &Observation) {
        if self.last.as_ref().is_none_or(|last| !is_same(last, seen)) {
            self.changed = self.now;
            self.last = Some(seen.clone());
        }
    }

    /// Where the job stands at a time since the POST. Fractions never fall from one call to the next; between polls
    /// they may grow by estimate, within the step at hand at most.
    pub fn progress(&mut self, at: Duration) -> Progress {
        self.now = self.now.max(at);
        let (estimated, used_up) = self.estimate();
        let fraction = self.fraction_at(estimated).clamp(0.0, CEILING);
        let source = if !self.begun() {
            Source::Held
        } else if self.confirmed && estimated == self.position {
            Source::Measured
        } else if !used_up && fraction > self.fraction {
            Source::Estimated
        } else {
            Source::Held
        };
        self.shown = self.shown.max(fraction);
        self.step_shown = self.step_shown.max(self.passes.steps_done());
        let steps = self.passes.steps_total().max(self.step_shown);
        let stalled = self.now.saturating_sub(self.changed);
        let stalled = (stalled > self.patience()).then_some(stalled);
        Progress {
            fraction: self.shown,
            stage: self.stage,
            image: self.passes.planned_now().image,
            images: self.plan.images,
            step: self.step_shown,
            steps,
            steps_per_second: self.rate.seconds_per_step(self.now).map(f64::recip),
            eta: if stalled.is_none() { self.eta(estimated) } else { None },
            source,
            stalled,
        }
    }

    /// Ends the watch `at` the answer's arrival, and says how long each stage took. To be learnt from only if the
    /// answer was a success.
    pub fn finish(self, at: Duration) -> Timings {
        let last = &self.segments[self.position.segment];
        self.clock.finish(last, at.max(self.now))
    }

    /// Whether the server still works for another, whose work was running at the POST.
    pub fn is_foreign(&self) -> bool {
        self.phase == Phase::Foreign
    }

    /// Whether the interrupt flag was seen raised while the job ran: evidence for the verifier.
    pub fn interrupted_seen(&self) -> bool {
        self.interrupted
    }

    /// Sampling passes counted so far, those beyond the plan included.
    pub fn passes_seen(&self) -> u32 {
        self.passes.seen()
    }

    fn begun(&self) -> bool {
        self.phase == Phase::Begun
    }

    /// Whether an observation is what showed before the POST.
    fn is_left_over(&self, seen: &Observation) -> bool {
        let Some(baseline) = &self.baseline else { return false };
        let same_stage = seen.id.as_deref().is_some_and(|id| !id.is_empty()) && seen.id == baseline.id;
        same_stage || (!self.begun() && is_same(baseline, seen))
    }

    /// The fraction that a position at or ahead of the measured one stands for.
    fn fraction_at(&self, to: Position) -> f64 {
        let costs = self.costs();
        let end = Position { segment: self.segments.len() - 1, within: 1.0 };
        let left = costs.between(&self.segments, self.position, end);
        let gone = costs.between(&self.segments, self.position, to);
        let share = if left > 0.0 { (gone / left).clamp(0.0, 1.0) } else { 0.0 };
        self.fraction + (1.0 - self.fraction) * share
    }

    /// The position by estimate, and whether the estimate has nothing more to give.
    fn estimate(&self) -> (Position, bool) {
        let segment = &self.segments[self.position.segment];
        let seconds = self.costs().seconds(segment);
        let age = self.now.saturating_sub(self.moved).as_secs_f64();
        // A segment without steps is one step.
        let steps = if matches!(segment.cost, Cost::Sampling | Cost::Hires) {
            segment.pass.map_or(1.0, |pass| f64::from(self.passes.planned()[pass].steps))
        } else {
            1.0
        };
        if !self.begun() || self.position.within >= 1.0 || seconds <= 0.0 {
            return (self.position, true);
        }
        let share = age / (seconds / steps);
        let within = self.position.within + share.min(ESTIMATE_CEILING) / steps;
        (Position { within: within.min(1.0), ..self.position }, share >= ESTIMATE_CEILING)
    }

    fn eta(&self, from: Position) -> Option<Duration> {
        let known = self.measured.iter().any(Option::is_some) || self.weights.is_learnt(Cost::Sampling);
        let end = Position { segment: self.segments.len() - 1, within: 1.0 };
        let seconds = self.costs().between(&self.segments, from, end);
        known.then(|| Duration::try_from_secs_f64(seconds).ok()).flatten()
    }

    /// How long the stage at hand may go without a change before that is worth saying. First steps compile and warm
    /// up, and a checkpoint may come over a network.
    fn patience(&self) -> Duration {
        let segment = &self.segments[self.position.segment];
        let seconds = self.costs().seconds(segment);
        let (least, unit, times) = match segment.cost {
            Cost::Loading => (180.0, seconds, 4.0),
            Cost::Sampling | Cost::Hires if self.position.within > 0.0 => {
                // What is waited for must not count as slowness here, or the patience would grow with the wait.
                let steps = segment.pass.map_or(1, |pass| self.passes.planned()[pass].steps);
                (15.0, self.rate.seconds_per_step_seen().unwrap_or(seconds / f64::from(steps)), 10.0)
            }
            _ => (60.0, seconds, 4.0),
        };
        Duration::try_from_secs_f64(f64::max(least, unit * times)).unwrap_or(Duration::MAX)
    }

    fn costs(&self) -> Costs<'_> {
        let [sampling, hires] = self.measured;
        Costs { weights: &self.weights, sampling, hires }
    }
}

/// Whether another's work cannot look like this while it runs on: it is a gap, or the beginning of something.
fn shows_an_end(sight: Sight<'_>) -> bool {
    match sight {
        Sight::Idle | Sight::Loading | Sight::Preparing => true,
        Sight::Pass { id, .. } => matches!(id, PassId::Stage(_)),
        _ => false,
    }
}

/// Whether two observations show the same moment of the same stage. Flags and estimates do not count.
fn is_same(one: &Observation, other: &Observation) -> bool {
    let key = |seen: &Observation| (seen.sampling_step, seen.sampling_steps, seen.job_no);
    one.id == other.id && one.job == other.job && key(one) == key(other)
}
