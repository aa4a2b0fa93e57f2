//! A job's life in plain lines: one for each change of stage and each tenth, not one for each message.

use std::collections::HashMap;
use std::fmt::Write as _;

use stepcast_shared::ids::JobId;
use stepcast_shared::messages::{Complete, JobMessage, ProgressUpdate, Stage, Status};

use crate::table::shortened;

/// How much of a reason is shown, in characters.
const MAX_REASON: usize = 500;

/// Remembers what was said last of each running job.
#[derive(Debug, Default)]
pub struct Lines(HashMap<JobId, Said>);

#[derive(Clone, Copy, Debug, PartialEq)]
struct Said {
    stage: Stage,
    tenth: u32,
    stalled: bool,
}

impl Lines {
    /// The line of a message, if it says anything new.
    pub fn line(&mut self, message: &JobMessage) -> Option<String> {
        let text = match message {
            JobMessage::Progress(update) => self.progress(update)?,
            other => {
                self.0.remove(&other.job_id());
                sentence(other)
            }
        };
        Some(format!("{} {text}", message.job_id()))
    }

    fn progress(&mut self, update: &ProgressUpdate) -> Option<String> {
        let said = Said { stage: update.stage, tenth: percent(update) / 10, stalled: update.stalled };
        let before = self.0.insert(update.job_id, said);
        (before != Some(said)).then(|| format!("{:>3} % {}", percent(update), details(update)))
    }
}

/// What a message says, in words.
pub fn sentence(message: &JobMessage) -> String {
    match message {
        JobMessage::Queued(queued) => match queued.position {
            Some(position) => format!("waiting, place {position} in line"),
            None => "waiting".to_owned(),
        },
        JobMessage::Started(started) if started.attempt > 1 => {
            format!("started on {}, attempt {}", started.backend, started.attempt)
        }
        JobMessage::Started(started) => format!("started on {}", started.backend),
        JobMessage::Progress(update) => format!("{} % {}", percent(update), details(update)),
        JobMessage::Retrying(retrying) => format!(
            "attempt {} failed on {}: {}; next attempt in {:.1} s",
            retrying.attempt,
            retrying.backend,
            shortened(&shortened(&retrying.error.message, MAX_REASON), MAX_REASON),
            retrying.next_attempt_in_seconds
        ),
        JobMessage::Complete(end) => ended(end),
    }
}

fn ended(end: &Complete) -> String {
    let mut text = end.status.to_string();
    if let Some(seconds) = end.total_duration {
        let _ = write!(text, " after {seconds:.1} s");
    }
    if let Some(seconds) = end.stopped_after_seconds {
        let _ = write!(text, ", {seconds:.1} s after that was asked for");
    }
    match (&end.error_message, end.status) {
        (Some(message), Status::Failed) => {
            let _ = write!(text, ": {}", shortened(message, MAX_REASON));
        }
        (_, Status::Completed) => {
            let images = if end.images.len() == 1 { "image" } else { "images" };
            let _ = write!(text, ", {} {images}", end.images.len());
        }
        _ => {}
    }
    text
}

/// Stage, steps, rate and time left.
pub fn details(update: &ProgressUpdate) -> String {
    let mut text = stage(update.stage).to_owned();
    if update.total_steps > 0 {
        let _ = write!(text, ", step {} of {}", update.current_step, update.total_steps);
    }
    if update.images > 1 {
        let _ = write!(text, ", image {} of {}", update.image, update.images);
    }
    if let Some(rate) = update.steps_per_second {
        let _ = write!(text, ", {rate:.1} steps/s");
    }
    if update.stalled {
        let age = update.stalled_seconds.unwrap_or_default();
        let _ = write!(text, ", nothing has changed for {age:.0} s");
    } else if let Some(eta) = update.eta_seconds {
        let _ = write!(text, ", {eta:.0} s left");
    }
    text
}

/// Progress in whole percent, 0 to 100.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value is clamped to 0 to 100"
)]
pub fn percent(update: &ProgressUpdate) -> u32 {
    (update.progress * 100.0).clamp(0.0, 100.0) as u32
}

fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Loading => "loading",
        Stage::Preparing => "preparing",
        Stage::Sampling => "sampling",
        Stage::Hires => "hires",
        Stage::Detailing => "detailing",
        Stage::Decoding => "decoding",
        Stage::Saving => "saving",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::follow::tests::{complete, progress, started};

    #[test]
    fn one_line_for_each_tenth_and_each_stage() {
        let id = JobId::mint();
        let mut lines = Lines::default();
        let mut said = |seq, value, stage| lines.line(&progress(id, seq, value, stage)).is_some();
        assert!(said(2, 0.01, Stage::Preparing));
        assert!(said(3, 0.02, Stage::Sampling), "another stage");
        assert!(!said(4, 0.05, Stage::Sampling));
        assert!(!said(5, 0.09, Stage::Sampling));
        assert!(said(6, 0.11, Stage::Sampling), "another tenth");
        assert!(!said(7, 0.19, Stage::Sampling));
    }

    #[test]
    fn a_new_attempt_is_told_from_its_beginning() {
        let id = JobId::mint();
        let mut lines = Lines::default();
        assert!(lines.line(&progress(id, 2, 0.0, Stage::Sampling)).is_some());
        assert_eq!(lines.line(&started(id, 2)).unwrap(), format!("{id} started on gpu, attempt 2"));
        assert!(lines.line(&progress(id, 2, 0.0, Stage::Sampling)).is_some());
    }

    #[test]
    fn a_line_says_what_a_person_wants_to_know() {
        let id = JobId::mint();
        let line = Lines::default().line(&progress(id, 2, 0.437, Stage::Sampling)).unwrap();
        assert_eq!(line, format!("{id}  43 % sampling, step 7 of 20, image 1 of 2, 3.1 steps/s, 4 s left"));
        let line = |status| sentence(&complete(id, status));
        assert_eq!(line(Status::Completed), "completed after 8.1 s, 1 image");
        assert_eq!(line(Status::Failed), "failed after 8.1 s: out of memory");
        assert_eq!(line(Status::Cancelled), "cancelled after 8.1 s");
        let JobMessage::Complete(end) = complete(id, Status::Cancelled) else { panic!("an end") };
        let end = JobMessage::Complete(Complete { stopped_after_seconds: Some(0.42), ..end });
        assert_eq!(sentence(&end), "cancelled after 8.1 s, 0.4 s after that was asked for");
    }
}
