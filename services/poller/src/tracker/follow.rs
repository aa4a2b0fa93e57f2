//! Moves a tracker along its timeline by what a poll showed.

use stepcast_shared::messages::Stage;

use super::{
    CEILING, Tracker,
    rate::Rate,
    sight::{PassId, Sight},
    timeline::{self, Position, Segment},
};
use crate::{plan::PassKind, weights::Cost};

impl Tracker {
    /// Moves along by one sight; false if it shows nothing of this job.
    pub(super) fn take_in(&mut self, sight: Sight<'_>) -> bool {
        match sight {
            Sight::Pass { id, step, steps } => return self.sampling(id, step, steps),
            Sight::Decoding { id } => {
                self.passes.decoding(id);
                self.stage = Stage::Decoding;
                self.follow_pass();
                return true;
            }
            _ => self.passes.elsewhere(),
        }
        let started = self.passes.current().is_some();
        match sight {
            Sight::Idle if self.passes.all_decoded() && !self.plan.detailer => {
                self.stage = Stage::Saving;
                self.enter(Cost::Saving, None);
            }
            Sight::Loading => {
                self.stage = Stage::Loading;
                if !started {
                    self.expect_loading();
                }
                if !started || self.passes.all_decoded() {
                    self.enter(Cost::Loading, None);
                }
            }
            Sight::Preparing => {
                self.stage = Stage::Preparing;
                if !started {
                    self.enter(Cost::Preparing, None);
                }
            }
            Sight::Upscaling if self.passes.hires_follows() => {
                self.stage = Stage::Hires;
                self.enter(Cost::Hires, self.passes.current().map(|current| current.index + 1));
            }
            Sight::Detailing if started => {
                self.stage = Stage::Detailing;
                self.enter(Cost::Detailing, self.passes.current().map(|current| current.index));
            }
            Sight::Saving if started => {
                self.stage = Stage::Saving;
                if self.passes.all_decoded() {
                    self.enter(Cost::Saving, None);
                }
            }
            Sight::Finished if started => {
                self.passes.finish();
                self.stage = Stage::Saving;
                self.enter(Cost::Saving, None);
            }
            _ => return false,
        }
        true
    }

    fn sampling(&mut self, id: PassId<'_>, step: u32, steps: u32) -> bool {
        let before = self.passes.seen();
        if !self.passes.sampling(id, step, steps) {
            return false;
        }
        if self.passes.seen() > before {
            self.rate = Rate::default();
        }
        self.fit_segments();
        let Some(current) = self.passes.current() else { return false };
        let kind = self.passes.planned_now().kind;
        self.stage = match kind {
            _ if current.extra && self.plan.detailer => Stage::Detailing,
            PassKind::Sampling => Stage::Sampling,
            PassKind::Hires => Stage::Hires,
        };
        if current.extra {
            self.enter(Cost::Detailing, Some(current.index));
            return true;
        }
        if current.step > 0 {
            self.rate.note(self.now, current.step);
        }
        if let Some(seconds) = self.rate.seconds_per_step(self.now) {
            self.measured[kind as usize] = Some(seconds / self.passes.planned_now().megapixels);
        }
        self.follow_pass();
        true
    }

    /// Moves to where the current pass stands.
    pub(super) fn follow_pass(&mut self) {
        let Some(current) = self.passes.current() else { return };
        let (index, step) = (current.index, current.step);
        if current.decoded {
            // Between the two passes of an image the decode has no segment: the first pass is over, the second to come.
            let follows = if self.passes.hires_follows() { Some(index + 1) } else { None };
            self.enter(if follows.is_some() { Cost::Hires } else { Cost::Decoding }, follows.or(Some(index)));
            return;
        }
        let pass = self.passes.planned_now();
        let within = f64::from(step.min(pass.steps)) / f64::from(pass.steps);
        if let Some(segment) = self.find(timeline::cost_of(pass.kind), Some(index)) {
            self.advance(Position { segment, within });
        }
    }

    /// Moves to the beginning of a segment, if the timeline has one ahead.
    pub(super) fn enter(&mut self, cost: Cost, pass: Option<usize>) {
        if let Some(segment) = self.find(cost, pass) {
            self.advance(Position { segment, within: 0.0 });
        }
    }

    /// The nearest segment of that kind that is not behind.
    fn find(&self, cost: Cost, pass: Option<usize>) -> Option<usize> {
        let ahead = self.segments.iter().enumerate().skip(self.position.segment);
        ahead
            .filter(|(_, segment)| segment.cost == cost && segment.pass == pass)
            .map(|(index, _)| index)
            .next()
    }

    /// Moves forward, never back. The way gone is weighed against the way left as of now, so that a corrected weight
    /// bends the rest of the bar instead of making it jump.
    fn advance(&mut self, to: Position) {
        if to <= self.position {
            if to.segment == self.position.segment {
                self.clock.see();
            }
            return;
        }
        self.fraction = self.fraction_at(to).clamp(self.fraction, CEILING);
        self.moved = self.now;
        if to.segment != self.position.segment {
            let from = &self.segments[self.position.segment];
            let changed = self.clock.cross(from, to.segment - self.position.segment - 1, self.now);
            if !matches!(self.segments[to.segment].cost, Cost::Sampling | Cost::Hires) {
                // Without steps to measure there is only the estimate, so it starts where the stage most likely did.
                self.moved = changed;
            }
        }
        self.position = to;
    }

    /// A load that nobody planned is put on the timeline once it shows.
    fn expect_loading(&mut self) {
        if self.segments[0].cost != Cost::Loading {
            self.segments.insert(0, Segment { cost: Cost::Loading, pass: None, units: 1.0 });
        }
    }

    /// Weighs passes by the steps that the server says they have.
    fn fit_segments(&mut self) {
        for segment in &mut self.segments {
            if let (Cost::Sampling | Cost::Hires, Some(pass)) = (segment.cost, segment.pass) {
                let pass = &self.passes.planned()[pass];
                segment.units = f64::from(pass.steps) * pass.megapixels;
            }
        }
    }
}
