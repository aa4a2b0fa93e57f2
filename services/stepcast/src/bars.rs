//! Progress bars, one per job, on a terminal.

use std::collections::BTreeMap;
use std::io::Write as _;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::{JobMessage, Status};

use crate::follow::is_end;
use crate::lines::{details, percent, sentence};

/// Most bars at once: a screen has only so many lines, and what does not fit is redrawn in vain.
const MAX_BARS: usize = 20;

/// The bars on the screen.
#[derive(Debug)]
pub struct Bars {
    screen: MultiProgress,
    bars: BTreeMap<JobId, ProgressBar>,
    /// Whether ended jobs make room for others, with a line in their place.
    replace: bool,
}

impl Bars {
    /// Bars that stay, or with `replace`, that give way to a line once their job has ended.
    pub fn new(replace: bool) -> Self {
        Self { screen: MultiProgress::new(), bars: BTreeMap::new(), replace }
    }

    /// Draws what a message says.
    pub fn show(&mut self, message: &JobMessage) {
        let job_id = message.job_id();
        if is_end(message) && (self.replace || !self.bars.contains_key(&job_id)) {
            if let Some(bar) = self.bars.remove(&job_id) {
                self.screen.remove(&bar);
            }
            self.say(&format!("{job_id} {}", sentence(message)));
            return;
        }
        let Some(bar) = self.bar(job_id) else { return };
        match message {
            JobMessage::Progress(update) => {
                bar.set_position(percent(update).into());
                bar.set_message(details(update));
            }
            JobMessage::Complete(end) => {
                if end.status == Status::Completed {
                    bar.set_position(100);
                }
                bar.abandon_with_message(sentence(message));
            }
            JobMessage::Queued(_) | JobMessage::Started(_) | JobMessage::Retrying(_) => {
                bar.set_position(0);
                bar.set_message(sentence(message));
            }
        }
    }

    /// Leaves the bars as they are, with the cursor below them.
    pub fn leave(self) {
        if !self.bars.is_empty() {
            let _ = writeln!(std::io::stderr());
        }
    }

    /// Prints a line above the bars.
    pub fn say(&self, text: &str) {
        // Not being able to draw is no reason to stop watching.
        let _ = self.screen.println(text);
    }

    fn bar(&mut self, job_id: JobId) -> Option<&ProgressBar> {
        if !self.bars.contains_key(&job_id) {
            if self.bars.len() >= MAX_BARS {
                return None;
            }
            let bar = self.screen.add(ProgressBar::new(100));
            bar.set_style(
                ProgressStyle::with_template("{prefix} {bar:24} {percent:>3} % {wide_msg}")
                    .expect("the template is well formed"),
            );
            // The end of a UUIDv7 is random; its beginning is a time that neighbours share.
            let id = job_id.to_string();
            bar.set_prefix(format!("…{}", &id[id.len() - 8..]));
            self.bars.insert(job_id, bar);
        }
        self.bars.get(&job_id)
    }
}
