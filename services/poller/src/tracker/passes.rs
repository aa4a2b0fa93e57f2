//! Counts the sampling passes of a job, which the server does not.
//!
//! A pass begins with a stage of a new id. Where the id is lost, a fall of the counters says the same, and a second
//! decode after something else says that a pass went by unseen. In doubt a pass is not counted: falling behind shows
//! as a bar that waits and then jumps, running ahead would be a claim that nothing supports.

use super::sight::PassId;
use crate::plan::{Pass, PassKind, Plan};

/// The passes of a plan, and which of them runs.
#[derive(Clone, Debug)]
pub(super) struct Passes {
    planned: Vec<Pass>,
    current: Option<Current>,
    seen: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Current {
    pub(super) index: usize,
    /// Most steps seen done; polls may move the server's own counter backwards.
    pub(super) step: u32,
    /// Whether decoding of this pass's result was seen.
    pub(super) decoded: bool,
    /// Whether this is one more pass than planned (a detailer's, a refiner's).
    pub(super) extra: bool,
    id: Option<String>,
    /// Steps that the server says this pass has, 0 until it does.
    steps: u32,
    decode_id: Option<String>,
    /// Whether something else was seen since the decode.
    left_decode: bool,
}

impl Passes {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { planned: plan.passes.clone(), current: None, seen: 0 }
    }

    pub(super) fn current(&self) -> Option<&Current> {
        self.current.as_ref()
    }

    pub(super) fn planned(&self) -> &[Pass] {
        &self.planned
    }

    /// The planned pass that runs or ran last; the first one before any has begun.
    pub(super) fn planned_now(&self) -> &Pass {
        &self.planned[self.current.as_ref().map_or(0, |current| current.index)]
    }

    /// Passes counted, those beyond the plan included.
    pub(super) fn seen(&self) -> u32 {
        self.seen
    }

    /// Whether nothing planned is left but what follows the last decode.
    pub(super) fn all_decoded(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.decoded) && !self.has_next()
    }

    /// Whether the next pass is the second one over the same image.
    pub(super) fn hires_follows(&self) -> bool {
        let next = self.current.as_ref().and_then(|current| self.planned.get(current.index + 1));
        next.is_some_and(|next| next.kind == PassKind::Hires)
    }

    /// Steps of the whole job that are done: all steps of earlier passes, and those seen of this one.
    pub(super) fn steps_done(&self) -> u32 {
        let Some(current) = &self.current else { return 0 };
        let earlier =
            self.planned[..current.index].iter().fold(0, |sum: u32, pass| sum.saturating_add(pass.steps));
        let all = self.planned[current.index].steps;
        earlier.saturating_add(if current.decoded || current.extra { all } else { current.step.min(all) })
    }

    /// Steps of the whole job.
    pub(super) fn steps_total(&self) -> u32 {
        self.planned.iter().fold(0, |sum, pass| sum.saturating_add(pass.steps))
    }

    /// Takes in sight of a sampling pass. False if it cannot be one of this job's.
    pub(super) fn sampling(&mut self, id: PassId<'_>, step: u32, steps: u32) -> bool {
        if self.is_new(id, step, steps) {
            let index = match id {
                PassId::Number { index, count } if self.numbered(count) => self.number(index),
                _ => self.current.as_ref().map_or(0, |current| current.index + 1),
            };
            self.begin(index);
        }
        let has_next = self.has_next();
        let Some(current) = &mut self.current else { return false };
        if let PassId::Stage(id) = id {
            current.id = Some(id.to_owned());
        } else if !has_next && current.steps != 0 && steps != current.steps {
            return false;
        }
        current.left_decode = true;
        if steps > 0 {
            current.steps = steps;
            current.step = current.step.max(step).min(steps);
            if !current.extra {
                self.correct();
            }
        }
        true
    }

    /// Takes in sight of a decode.
    pub(super) fn decoding(&mut self, id: &str) {
        match &self.current {
            None => self.begin(0),
            Some(current) => {
                let other = current.decode_id.as_deref().is_some_and(|last| last != id);
                if other && current.left_decode && self.has_next() {
                    self.begin(current.index + 1);
                }
            }
        }
        if let Some(current) = &mut self.current {
            current.decoded = true;
            current.decode_id = Some(id.to_owned());
            current.left_decode = false;
        }
    }

    /// Takes in that the current pass has no step left to do.
    pub(super) fn sampled(&mut self) {
        if let Some(current) = &mut self.current {
            current.decoded = true;
        }
    }

    /// Takes in that every planned pass is over.
    pub(super) fn finish(&mut self) {
        let last = self.planned.len() - 1;
        if self.current.as_ref().is_none_or(|current| current.index < last) {
            self.begin(last);
        }
        self.sampled();
    }

    /// Takes in sight of anything else.
    pub(super) fn elsewhere(&mut self) {
        if let Some(current) = &mut self.current {
            current.left_decode = true;
        }
    }

    fn is_new(&self, id: PassId<'_>, step: u32, steps: u32) -> bool {
        let Some(current) = &self.current else { return true };
        let fell = step < current.step;
        match id {
            PassId::Stage(id) => current.id.as_deref() != Some(id),
            PassId::Lingering => {
                let other_steps = current.steps != 0 && steps != current.steps;
                let was_full = current.steps != 0 && current.step >= current.steps;
                self.has_next() && (current.decoded || other_steps || (was_full && fell))
            }
            PassId::Number { index, count } if self.numbered(count) => self.number(index) > current.index,
            PassId::Number { .. } => self.has_next() && (fell || current.decoded),
        }
    }

    /// Whether the server's own count of batches is that of the plan.
    fn numbered(&self, count: u32) -> bool {
        count as usize == self.planned.len()
    }

    /// Index of a numbered pass; the number runs past the last one when a job ends.
    fn number(&self, index: u32) -> usize {
        (index as usize).min(self.planned.len() - 1)
    }

    fn has_next(&self) -> bool {
        self.current.as_ref().is_none_or(|current| current.index + 1 < self.planned.len())
    }

    fn begin(&mut self, index: usize) {
        self.seen = self.seen.saturating_add(1);
        let last = self.planned.len() - 1;
        let extra = index > last;
        let decoded = extra && self.current.as_ref().is_some_and(|current| current.decoded);
        self.current = Some(Current { index: index.min(last), extra, decoded, ..Current::default() });
    }

    /// The server knows best how many steps a pass has; passes of the same kind to come have as many.
    fn correct(&mut self) {
        let Some(Current { index, steps, .. }) = self.current else { return };
        let kind = self.planned[index].kind;
        if self.planned[index].steps != steps {
            for pass in self.planned[index..].iter_mut().filter(|pass| pass.kind == kind) {
                pass.steps = steps;
            }
        }
    }
}
