//! What must hold of every job after a run in which much went wrong: of its events, and of what was told of it.

use serde_json::Value;
use stepcast_shared::messages::EventSeq;
use stepcast_shared::subjects::Kind;

use crate::ledger::{Recorded, Row};
use crate::watcher::Told;

/// Checks that a job's events are one life: queued, attempt by attempt, one end. Returns that end.
pub fn events<'a>(job_id: &str, events: &'a [Recorded], max_attempts: u32) -> &'a Recorded {
    let told: Vec<String> = events.iter().map(|event| format!("{} {}", event.kind, event.seq)).collect();
    let at = |seq: EventSeq, attempt: u32, expected: u32| (seq.attempt, seq.seq) == (attempt, expected);
    let mut attempt = 0;
    let mut running = false;
    for (index, event) in events.iter().enumerate() {
        let is_last = index + 1 == events.len();
        let fits = match event.kind {
            Kind::Queued => index == 0 && at(event.seq, 0, 0),
            Kind::Started => {
                attempt += 1;
                !std::mem::replace(&mut running, true) && at(event.seq, attempt, EventSeq::STARTED)
            }
            Kind::Retrying => std::mem::take(&mut running) && at(event.seq, attempt, EventSeq::RETRYING),
            Kind::Completed => running && is_last && at(event.seq, attempt, EventSeq::TERMINAL),
            Kind::Failed | Kind::Cancelled => is_last && at(event.seq, attempt, EventSeq::TERMINAL),
            Kind::Progress | Kind::Preview => false,
        };
        assert!(fits, "{job_id}: event {index} does not fit in {told:?}");
        assert_eq!(event.message["data"]["job_id"], job_id);
    }
    let end = events.last().filter(|event| event.kind.is_terminal());
    let end = end.unwrap_or_else(|| panic!("{job_id} has no end: {told:?}"));
    assert!(attempt <= max_attempts, "{job_id} was tried more often than {max_attempts}: {told:?}");
    end
}

/// Checks that a row says what the job's last event says.
pub fn row(row: &Row, end: &Recorded) {
    let id = &row.id;
    assert_eq!(row.status, end.message["data"]["status"], "{id}: row and stream");
    assert_eq!((row.seq, row.event_seq), (end.seq, i64::try_from(end.sequence).ok()), "{id}: row and stream");
    assert_eq!(row.result.as_ref(), Some(&end.message["data"]), "{id}: row and stream");
    assert_eq!(row.message.as_ref(), Some(&end.message), "{id}: row and stream");
    assert_eq!(row.claim_token, None, "{id}: nobody holds a job that has ended");
}

/// Checks what one client was told of a job, over all its connections: what was recorded, in order, to the same end.
pub fn told(client: &str, job_id: &str, connections: &[Vec<Told>], recorded: &[Recorded]) {
    let end = recorded.last().expect("a job has events").seq;
    let mut last_event = None;
    for (connection, told) in connections.iter().enumerate() {
        let place = |told: &Told| format!("{} {}", told.message["type"], seq(&told.message["data"]));
        let context = || {
            let told: Vec<String> = told.iter().map(place).collect();
            format!("{job_id} to {client}, connection {connection}: {told:?}")
        };
        let mut last = None;
        let mut progress = (0, 0.0);
        for told in told {
            let (data, seq) = (&told.message["data"], seq(&told.message["data"]));
            let in_order = last.is_none_or(|last| last < seq);
            assert!(in_order, "{seq} after {last:?}: {}", context());
            last = Some(seq);
            if told.message["type"] == "progress_update" {
                let now = data["progress"].as_f64().expect("progress is a number");
                assert!((0.0..1.0).contains(&now), "progress {now} before the end: {}", context());
                assert!(progress.0 < seq.attempt || progress.1 <= now, "progress falls: {}", context());
                progress = (seq.attempt, now);
                let begun = recorded
                    .iter()
                    .any(|event| event.kind == Kind::Started && event.seq.attempt == seq.attempt);
                assert!(begun, "progress of attempt {} that never began: {}", seq.attempt, context());
                continue;
            }
            let same = recorded.iter().find(|event| event.seq == seq);
            assert_eq!(same.map(|event| &event.message), Some(&told.message), "{}", context());
            assert!(last_event.is_none_or(|last| last <= seq), "an earlier event than before: {}", context());
            last_event = Some(seq);
        }
    }
    assert_eq!(last_event, Some(end), "{client} knows the end of {job_id}");
}

fn seq(data: &Value) -> EventSeq {
    let number = |name: &str| data[name].as_u64().and_then(|number| u32::try_from(number).ok());
    let (Some(attempt), Some(seq)) = (number("attempt"), number("seq")) else { panic!("no place: {data}") };
    EventSeq { attempt, seq }
}
