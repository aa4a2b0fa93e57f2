//! What is known of a server between two renders, so that renders in a row need not ask for it again.
//!
//! All of it is asked anew as soon as anything but a render of ours may have happened on the server.

use std::time::Duration;

use tokio::time::Instant;

use crate::history::Mark;
use crate::sample::Sample;
use crate::sdnext::{LogEnd, SdNext, Unusable};

/// How long a look stands for what the server shows just before a POST.
const LOOK_STANDS: Duration = Duration::from_millis(100);
/// How long the end of the log is known: as long as an idle server is left alone.
const LOG_STANDS: Duration = Duration::from_secs(2);
/// Renders after which the history is read again: it keeps 10,000 rows, and a large render writes some hundreds.
const RENDERS: u32 = 20;

/// What is known.
#[derive(Debug, Default)]
pub struct Known {
    looked: Option<(Sample, Instant)>,
    /// Whether the next look is the first since something went on there.
    unsure: bool,
    log_end: Option<(LogEnd, Instant)>,
    mark: Option<Mark>,
}

impl Known {
    /// Takes in a look at a server that was free.
    ///
    /// The first one after a render of ours stands for nothing. Whoever's request waited for that render has the server
    /// now, and a look may fall between two stages of his (recorded: one in sixty does); a second one right after it
    /// hardly does so too.
    pub fn looked(&mut self, sample: Sample) {
        let first = std::mem::take(&mut self.unsure);
        self.looked = (!first).then(|| (sample, Instant::now()));
    }

    /// Takes in that a render of ours was answered with all that it was asked for.
    pub fn rendered(&mut self) {
        self.looked = None;
        self.unsure = true;
        self.mark = self.mark.map(|mark| Mark { renders: mark.renders + 1, ..mark });
    }

    /// Takes in that anything may have happened.
    pub fn forget(&mut self) {
        *self = Self { unsure: true, ..Self::default() };
    }

    /// What the server shows now. An `Err` says only that this look failed.
    pub async fn sample(&self, server: &SdNext) -> Result<Sample, Unusable> {
        match &self.looked {
            Some((sample, at)) if at.elapsed() < LOOK_STANDS => Ok(sample.clone()),
            _ => server.sample().await,
        }
    }

    /// Where the log ends now; `None` if it cannot be read.
    pub async fn log_end(&mut self, server: &SdNext) -> Option<LogEnd> {
        if self.log_end.is_none_or(|(_, at)| at.elapsed() >= LOG_STANDS) {
            let at = Instant::now();
            self.log_end = server.log_end().await.map(|end| (end, at));
        }
        self.log_end.map(|(end, _)| end)
    }

    /// Where the history ends now.
    pub async fn mark(&mut self, server: &SdNext) -> Result<Mark, Unusable> {
        if let Some(mark) = self.mark.filter(|mark| mark.renders < RENDERS) {
            return Ok(mark);
        }
        let end = match server.history().await {
            Ok(rows) => rows.last().map_or(0.0, |row| row.timestamp),
            // A task's own name says more than a history, and whoever speaks of neither is retried.
            Err(Unusable::Odd(_)) => 0.0,
            Err(error) => return Err(error),
        };
        let mark = Mark { end, renders: 0 };
        self.mark = Some(mark);
        Ok(mark)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_stands_unless_it_is_the_first_after_a_render() {
        let mut known = Known::default();
        let stands = |known: &Known| known.looked.is_some();
        known.looked(Sample::Missed);
        assert!(stands(&known), "nothing of ours came before it");
        known.rendered();
        assert!(!stands(&known), "what was seen before a render says nothing after it");
        known.looked(Sample::Missed);
        assert!(!stands(&known), "somebody who waited may be between two stages");
        known.looked(Sample::Missed);
        assert!(stands(&known));
        known.forget();
        known.looked(Sample::Missed);
        assert!(!stands(&known), "a render that failed was one too");
    }
}
