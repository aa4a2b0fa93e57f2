//! What one observation shows, as far as it alone can tell.

use crate::sample::Observation;

/// The meaning of one observation. Labels come from the recordings; those of other servers read as
/// [`Sight::Unknown`] unless they carry steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight<'a> {
    /// No stage and no steps: the gap between two stages, or nothing at all.
    Idle,
    Loading,
    Preparing,
    /// A sampling pass; steps are 0 of 0 until the first one is done.
    Pass {
        id: PassId<'a>,
        step: u32,
        steps: u32,
    },
    /// Work between the two passes.
    Upscaling,
    Decoding {
        id: &'a str,
    },
    Detailing,
    Saving,
    /// Every pass is over, where the server counts them.
    Finished,
    Unknown,
}

/// How a sampling pass can be told from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PassId<'a> {
    /// By the id of its stage, which is new for every pass.
    Stage(&'a str),
    /// Not at all: the stage's id is gone but its counters linger (at the end of a pass, or all along once a preview
    /// by method Full has nested a stage).
    Lingering,
    /// By its number, where the server counts batches (A1111, Forge).
    Number { index: u32, count: u32 },
}

impl<'a> Sight<'a> {
    pub(super) fn of(seen: &'a Observation) -> Self {
        let (step, steps) = (seen.sampling_step.min(seen.sampling_steps), seen.sampling_steps);
        let Some(id) = seen.id.as_deref() else {
            return match (seen.job_count, steps) {
                // Counters linger there too, and only the count of batches says that nothing runs.
                (0, _) if seen.job.is_empty() => Self::Idle,
                (count, _) if count > 0 && seen.job_no >= count => Self::Finished,
                // Begun, and its batches not counted yet.
                (0, _) | (_, 0) => Self::Preparing,
                // Steps are never cleared there: before the first one is done these may be an earlier job's.
                _ if seen.job_no == 0 && step == 0 => Self::Preparing,
                (count, _) if step == 0 => {
                    Self::Pass { id: PassId::Number { index: seen.job_no, count }, step: 0, steps: 0 }
                }
                (count, _) => Self::Pass { id: PassId::Number { index: seen.job_no, count }, step, steps },
            };
        };
        if id.is_empty() && seen.job.is_empty() {
            return if steps == 0 { Self::Idle } else { Self::Pass { id: PassId::Lingering, step, steps } };
        }
        let label = seen.job.to_ascii_lowercase();
        let has = |word: &str| label.contains(word);
        match label.as_str() {
            "inference" => Self::Pass { id: PassId::Stage(id), step, steps },
            "styles" | "process" | "base" | "params" => Self::Preparing,
            "hires" | "upscale" => Self::Upscaling,
            _ if has("decode") => Self::Decoding { id },
            _ if has("load") => Self::Loading,
            _ if has("encode") || has("api-") => Self::Preparing,
            _ if has("detail") => Self::Detailing,
            _ if has("save") => Self::Saving,
            _ if steps > 0 => Self::Pass { id: PassId::Stage(id), step, steps },
            _ => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(id: &str, job: &str, step: u32, steps: u32) -> Observation {
        Observation {
            id: Some(id.to_owned()),
            job: job.to_owned(),
            sampling_step: step,
            sampling_steps: steps,
            ..Observation::default()
        }
    }

    #[test]
    fn every_recorded_label_is_known() {
        for (label, expected) in [
            ("API-TXT", Sight::Preparing),
            ("API-IMG", Sight::Preparing),
            ("API-CTL", Sight::Preparing),
            ("Load model", Sight::Loading),
            ("Styles", Sight::Preparing),
            ("Process", Sight::Preparing),
            ("Base", Sight::Preparing),
            ("Params", Sight::Preparing),
            ("TE Encode", Sight::Preparing),
            ("VAE Decode", Sight::Decoding { id: "a" }),
            ("Hires", Sight::Upscaling),
            ("Upscale", Sight::Upscaling),
            ("Save image", Sight::Saving),
            ("Inference", Sight::Pass { id: PassId::Stage("a"), step: 0, steps: 0 }),
            ("Create Video", Sight::Unknown),
            ("Remove background", Sight::Unknown),
        ] {
            assert_eq!(Sight::of(&seen("a", label, 0, 0)), expected, "{label}");
        }
    }

    #[test]
    fn counters_without_a_stage_linger() {
        assert_eq!(Sight::of(&seen("", "", 0, 0)), Sight::Idle);
        assert_eq!(Sight::of(&seen("", "", 9, 8)), Sight::Pass { id: PassId::Lingering, step: 8, steps: 8 });
    }

    #[test]
    fn servers_without_ids_count_batches() {
        let mut seen = Observation { sampling_step: 3, sampling_steps: 20, ..Observation::default() };
        assert_eq!(Sight::of(&seen), Sight::Idle);
        seen.job = "scripts_txt2img".to_owned();
        assert_eq!(Sight::of(&seen), Sight::Preparing);
        (seen.job_no, seen.job_count) = (2, 2);
        assert_eq!(Sight::of(&seen), Sight::Finished);
        (seen.job_no, seen.sampling_step) = (0, 0);
        assert_eq!(Sight::of(&seen), Sight::Preparing, "the steps may be those of an earlier job");
        seen.sampling_step = 3;
        (seen.job_no, seen.job_count) = (1, 2);
        assert_eq!(
            Sight::of(&seen),
            Sight::Pass { id: PassId::Number { index: 1, count: 2 }, step: 3, steps: 20 }
        );
    }
}
