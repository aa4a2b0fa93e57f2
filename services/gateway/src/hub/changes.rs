//! Progress of all jobs of one owner for those who take it in batches: what a dashboard costs does not grow with the
//! rate at which jobs report, only with the number of jobs.

use std::collections::HashMap;

use stepcast_shared::ids::JobId;
use stepcast_shared::messages::Timestamp;

use crate::frame::{Class, JobFrame};
use crate::outbox::Batch;
use crate::ws::Wire;

/// Bytes after which a message is full; a browser reads such a message without a pause.
const FULL: usize = 64 * 1024;
/// Jobs of which changes are kept between two batches; the latest of a further one comes with a later batch.
const MOST: usize = 50_000;

/// The latest progress of each job since the last batch.
#[derive(Debug, Default)]
pub(super) struct Changes {
    wanted: bool,
    latest: HashMap<JobId, JobFrame>,
}

impl Changes {
    /// Says whether anybody takes batches; if not, nothing is kept.
    pub(super) fn wanted(&mut self, wanted: bool) {
        self.wanted = wanted;
        if !wanted {
            self.latest = HashMap::new();
        }
    }

    /// Takes note of a frame that goes beyond all others of its job. An event is sent at once and by itself.
    pub(super) fn note(&mut self, frame: &JobFrame) {
        if !self.wanted {
            return;
        }
        match frame.class {
            Class::Event => {
                if self.latest.get(&frame.job_id).is_some_and(|kept| kept.seq < frame.seq) {
                    self.latest.remove(&frame.job_id);
                }
            }
            Class::Progress if self.latest.len() < MOST || self.latest.contains_key(&frame.job_id) => {
                self.latest.insert(frame.job_id, frame.clone());
            }
            Class::Progress => {}
        }
    }

    /// Whether the next batch tells of a job.
    pub(super) fn tell_of(&self, id: JobId) -> bool {
        self.latest.contains_key(&id)
    }

    /// Takes what has changed; `None` if nothing has.
    pub(super) fn take(&mut self) -> Option<Batch> {
        if self.latest.is_empty() {
            return None;
        }
        let frames: Vec<JobFrame> = self.latest.drain().map(|(_, frame)| frame).collect();
        let wires = encode(&frames);
        Some(Batch { frames, wires })
    }
}

/// `progress_batch` messages with the envelopes in them byte for byte, as many as are needed.
fn encode(frames: &[JobFrame]) -> Vec<Wire> {
    let timestamp = serde_json::to_string(&Timestamp::now()).expect("a time is JSON");
    let head = format!("{{\"type\":\"progress_batch\",\"timestamp\":{timestamp},\"data\":{{\"messages\":[");
    let mut wires = Vec::new();
    let mut text = head.clone();
    for frame in frames {
        if text.len() > FULL {
            wires.push(Wire::text(&finished(&text)));
            text.clone_from(&head);
        }
        if text.len() > head.len() {
            text.push(',');
        }
        text.push_str(std::str::from_utf8(frame.wire.payload()).expect("it was checked when it was read"));
    }
    wires.push(Wire::text(&finished(&text)));
    wires
}

fn finished(text: &str) -> String {
    format!("{text}]}}}}")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use stepcast_shared::ids::JobId;

    use super::*;

    fn frame(job_id: JobId, seq: &str, class: Class, size: usize) -> JobFrame {
        let text = json!({"seq": seq, "filling": "x".repeat(size)}).to_string();
        JobFrame { job_id, class, seq: seq.parse().unwrap(), place: 0, wire: Wire::text(&text) }
    }

    fn messages(batch: &Batch) -> Vec<Value> {
        let read = |wire: &Wire| serde_json::from_slice::<Value>(wire.payload()).unwrap();
        batch
            .wires
            .iter()
            .flat_map(|wire| read(wire)["data"]["messages"].as_array().unwrap().clone())
            .collect()
    }

    #[test]
    fn the_latest_of_each_job_goes_and_what_an_event_has_overtaken_does_not() {
        let (mut changes, one, other) = (Changes::default(), JobId::mint(), JobId::mint());
        changes.wanted(true);
        changes.note(&frame(one, "1.2", Class::Progress, 1));
        changes.note(&frame(one, "1.3", Class::Progress, 1));
        changes.note(&frame(other, "1.2", Class::Progress, 1));
        changes.note(&frame(other, "1.2147483647", Class::Event, 1));
        let batch = changes.take().unwrap();
        assert_eq!(messages(&batch).iter().map(|it| it["seq"].clone()).collect::<Vec<_>>(), ["1.3"]);
        assert!(changes.take().is_none());
    }

    #[test]
    fn many_changes_come_in_several_messages_and_all_arrive() {
        let mut changes = Changes::default();
        changes.wanted(true);
        for _ in 0..1_000 {
            changes.note(&frame(JobId::mint(), "1.2", Class::Progress, 300));
        }
        let batch = changes.take().unwrap();
        assert!(batch.wires.len() > 3, "{}", batch.wires.len());
        assert!(batch.wires.iter().all(|wire| wire.payload().len() < 2 * FULL));
        assert_eq!(messages(&batch).len(), 1_000);
    }

    #[test]
    fn nothing_is_kept_for_nobody() {
        let mut changes = Changes::default();
        changes.note(&frame(JobId::mint(), "1.2", Class::Progress, 1));
        assert!(changes.take().is_none());
    }
}
