//! A job in any course that it may take.

use stepcast_shared::messages::EventSeq;

/// What was said of a job so far.
#[derive(Debug, Default)]
pub struct Life {
    /// Its recorded messages.
    pub events: Vec<EventSeq>,
    /// Its last message.
    pub latest: Option<EventSeq>,
}

impl Life {
    /// It is recorded to go on: queued, started, then retrying or at its end, behind which there is nothing.
    pub fn event(&mut self, ends: bool) -> Option<EventSeq> {
        let next = match self.events.last() {
            None => EventSeq { attempt: 0, seq: EventSeq::QUEUED },
            Some(EventSeq { seq: EventSeq::TERMINAL, .. }) => return None,
            Some(&EventSeq { attempt, seq: EventSeq::STARTED }) => {
                EventSeq { attempt, seq: if ends { EventSeq::TERMINAL } else { EventSeq::RETRYING } }
            }
            Some(EventSeq { attempt, .. }) => EventSeq { attempt: attempt + 1, seq: EventSeq::STARTED },
        };
        self.events.push(next);
        self.latest = Some(next);
        self.latest
    }

    /// It says how far it is, if it is running.
    pub fn progress(&mut self) -> Option<EventSeq> {
        let is_running = |it: &EventSeq| (EventSeq::STARTED..EventSeq::RETRYING - 1).contains(&it.seq);
        let next = self.latest.filter(is_running).map(|it| EventSeq { seq: it.seq + 1, ..it })?;
        self.latest = Some(next);
        self.latest
    }
}
