//! The stages of a request in order, with what each of them weighs.

use crate::{
    plan::{ModelChange, PassKind, Plan},
    weights::{Cost, Weights},
};

/// One stretch of a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Segment {
    pub(crate) cost: Cost,
    /// The pass that this is, or that this follows; [`None`] for what happens once a job.
    pub(crate) pass: Option<usize>,
    /// How many units of `cost`.
    pub(crate) units: f64,
}

/// A point on the timeline: a segment and how much of it is done (0 to 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub(crate) struct Position {
    pub(crate) segment: usize,
    pub(crate) within: f64,
}

/// Seconds per unit for the job at hand: learnt figures, corrected by what it shows itself.
pub(crate) struct Costs<'a> {
    pub(crate) weights: &'a Weights,
    /// Measured seconds per unit of [`Cost::Sampling`].
    pub(crate) sampling: Option<f64>,
    /// Measured seconds per unit of [`Cost::Hires`].
    pub(crate) hires: Option<f64>,
}

/// Lays out a plan.
pub(crate) fn lay_out(plan: &Plan) -> Vec<Segment> {
    let once = |cost, units: f64| Segment { cost, pass: None, units };
    let mut segments = Vec::with_capacity(plan.passes.len() * 2 + 4);
    if plan.model != ModelChange::None {
        segments.push(once(Cost::Loading, 1.0));
    }
    segments.push(once(Cost::Preparing, 1.0));
    for (index, pass) in plan.passes.iter().enumerate() {
        let of_pass = |cost, units: f64| Segment { cost, pass: Some(index), units };
        segments.push(of_pass(cost_of(pass.kind), f64::from(pass.steps) * pass.megapixels));
        let ends_image = plan.passes.get(index + 1).is_none_or(|next| next.image != pass.image);
        if ends_image {
            segments.push(of_pass(Cost::Decoding, pass.megapixels));
            if plan.detailer {
                segments.push(of_pass(Cost::Detailing, f64::from(plan.batch_size)));
            }
        }
    }
    segments.push(once(Cost::Saving, f64::from(plan.images)));
    if plan.model == ModelChange::LoadsAndRestores {
        segments.push(once(Cost::Loading, 1.0));
    }
    segments
}

/// What a step of such a pass costs.
pub(crate) fn cost_of(kind: PassKind) -> Cost {
    match kind {
        PassKind::Sampling => Cost::Sampling,
        PassKind::Hires => Cost::Hires,
    }
}

impl Costs<'_> {
    /// Seconds that a whole segment takes.
    pub(crate) fn seconds(&self, segment: &Segment) -> f64 {
        segment.units * self.per_unit(segment.cost)
    }

    /// Seconds between two points; 0 if `to` is not behind `from`.
    pub(crate) fn between(&self, segments: &[Segment], from: Position, to: Position) -> f64 {
        let mut seconds = 0.0;
        for (index, segment) in segments.iter().enumerate().skip(from.segment) {
            let start = if index == from.segment { from.within } else { 0.0 };
            let end = match index.cmp(&to.segment) {
                std::cmp::Ordering::Less => 1.0,
                std::cmp::Ordering::Equal => to.within,
                std::cmp::Ordering::Greater => break,
            };
            seconds += (end - start).max(0.0) * self.seconds(segment);
        }
        seconds
    }

    /// The measured rate of one pass says something about what else computes: how this job's model and this hour's load
    /// compare with what was learnt.
    fn per_unit(&self, cost: Cost) -> f64 {
        let learnt = self.weights.seconds(cost);
        match cost {
            Cost::Sampling => self.sampling.unwrap_or(learnt * self.pace()),
            Cost::Hires => self.hires.unwrap_or(learnt * self.pace()),
            Cost::Decoding | Cost::Detailing if self.weights.is_learnt(cost) => {
                learnt * self.pace().clamp(0.5, 2.0)
            }
            Cost::Decoding | Cost::Detailing => learnt * self.pace(),
            _ => learnt,
        }
    }

    fn pace(&self) -> f64 {
        match (self.sampling, self.hires) {
            (Some(measured), _) => measured / self.weights.seconds(Cost::Sampling),
            (None, Some(measured)) => measured / self.weights.seconds(Cost::Hires),
            (None, None) => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Hires, PlanInput};

    #[test]
    fn a_full_request_is_laid_out_in_order() {
        let hires = Hires { steps: 5, scale: 2.0, resize_x: 0, resize_y: 0, resize_mode: Some(1) };
        let input = PlanInput {
            n_iter: 2,
            hires: Some(hires),
            detailer: true,
            model: ModelChange::LoadsAndRestores,
            ..PlanInput::default()
        };
        let costs: Vec<_> = lay_out(&Plan::new(&input)).into_iter().map(|segment| segment.cost).collect();
        let image = [Cost::Sampling, Cost::Hires, Cost::Decoding, Cost::Detailing];
        let expected =
            [[Cost::Loading, Cost::Preparing].as_slice(), &image, &image, &[Cost::Saving, Cost::Loading]]
                .concat();
        assert_eq!(costs, expected);
    }

    #[test]
    fn distances_add_up() {
        let segments = lay_out(&Plan::new(&PlanInput::default()));
        let costs = Costs { weights: &Weights::default(), sampling: None, hires: None };
        let at = |segment, within| Position { segment, within };
        let whole = costs.between(&segments, at(0, 0.0), at(3, 1.0));
        let halves = costs.between(&segments, at(0, 0.0), at(1, 0.5))
            + costs.between(&segments, at(1, 0.5), at(3, 1.0));
        assert!((whole - halves).abs() < 1e-9);
        assert!(costs.between(&segments, at(2, 0.0), at(1, 0.5)).abs() < 1e-9);
    }
}
