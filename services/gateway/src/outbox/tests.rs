use std::sync::Arc;

use stepcast_shared::messages::EventSeq;

use super::*;
use crate::close;
use crate::frame::Class;

const BOUNDS: Bounds = Bounds { messages: 8, bytes: 1_000 };

fn frame(job_id: JobId, seq: &str, class: Class) -> JobFrame {
    JobFrame { job_id, class, seq: seq.parse().unwrap(), text: format!("{class:?} {seq}").into() }
}

fn event(job_id: JobId, seq: &str) -> JobFrame {
    frame(job_id, seq, Class::Event)
}

fn progress(job_id: JobId, seq: &str) -> JobFrame {
    frame(job_id, seq, Class::Progress)
}

fn terminal(job_id: JobId, attempt: u32) -> JobFrame {
    event(job_id, &EventSeq { attempt, seq: EventSeq::TERMINAL }.to_string())
}

fn taken(outbox: &Outbox) -> Vec<String> {
    texts(outbox.take(Instant::now()))
}

fn texts(batch: Batch) -> Vec<String> {
    batch.frames.into_iter().map(|message| message.into_text().unwrap().to_string()).collect()
}

#[test]
fn progress_not_yet_sent_is_replaced_and_events_are_not() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    outbox.live(&event(id, "1.1"));
    for seq in ["1.2", "1.3", "1.4"] {
        outbox.live(&progress(id, seq));
    }
    assert_eq!(taken(&outbox), ["Event 1.1", "Progress 1.4"]);
    assert_eq!(taken(&outbox), [""; 0]);
}

#[test]
fn an_event_overtakes_no_progress_of_its_job_but_removes_it() {
    let (outbox, id, other) = (Outbox::new(BOUNDS), JobId::mint(), JobId::mint());
    outbox.live(&progress(id, "1.2"));
    outbox.live(&progress(other, "1.9"));
    outbox.live(&terminal(id, 1));
    assert_eq!(taken(&outbox), ["Event 1.2147483647", "Progress 1.9"]);
}

#[test]
fn nothing_goes_back_and_nothing_follows_the_end() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    assert!(outbox.live(&progress(id, "2.5")));
    for old in ["2.5", "2.4", "1.2147483646"] {
        assert!(!outbox.live(&progress(id, old)), "{old}");
    }
    assert!(outbox.live(&terminal(id, 2)));
    assert!(!outbox.live(&terminal(id, 2)));
    assert!(!outbox.live(&event(id, "3.1")));
    assert_eq!(taken(&outbox), ["Event 2.2147483647"]);
    assert_eq!(outbox.take_finished(), [id]);
    assert!(outbox.take_finished().is_empty());
}

#[test]
fn a_snapshot_comes_before_what_was_live_meanwhile() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    outbox.hold(&Jobs::Ids(vec![id]));
    outbox.live(&progress(id, "1.7"));
    outbox.live(&progress(id, "1.8"));
    outbox.live(&terminal(id, 1));
    assert!(taken(&outbox).is_empty());
    outbox.answer("confirmed".into());
    outbox.snapshot(&event(id, "1.1"));
    outbox.release();
    assert_eq!(taken(&outbox), ["confirmed", "Event 1.1", "Event 1.2147483647"]);
}

#[test]
fn a_hold_for_all_covers_jobs_not_heard_of_and_one_by_id_does_not() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    outbox.hold(&Jobs::All);
    outbox.live(&event(id, "0.0"));
    assert!(taken(&outbox).is_empty());
    outbox.release();
    assert_eq!(taken(&outbox), ["Event 0.0"]);
    outbox.hold(&Jobs::Ids(vec![JobId::mint()]));
    outbox.live(&event(id, "1.1"));
    assert_eq!(taken(&outbox), ["Event 1.1"]);
}

#[test]
fn a_stale_snapshot_says_nothing_new() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    outbox.live(&progress(id, "1.7"));
    assert!(!outbox.snapshot(&event(id, "1.1")));
    assert_eq!(taken(&outbox), ["Progress 1.7"]);
}

#[test]
fn who_asks_again_is_told_again() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    outbox.live(&terminal(id, 1));
    outbox.forget_finished(&[id]);
    assert!(outbox.snapshot(&terminal(id, 1)));
    outbox.forget(&Jobs::Ids(vec![id]));
    assert!(outbox.snapshot(&terminal(id, 1)));
}

#[test]
fn unsent_progress_of_a_job_no_longer_watched_is_dropped() {
    let (outbox, id, other) = (Outbox::new(BOUNDS), JobId::mint(), JobId::mint());
    outbox.live(&progress(id, "1.7"));
    outbox.live(&progress(other, "1.8"));
    outbox.forget(&Jobs::Ids(vec![id]));
    assert_eq!(taken(&outbox), ["Progress 1.8"]);
}

#[test]
fn a_client_that_cannot_keep_up_is_closed_rather_than_robbed() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    for attempt in 1..=9 {
        outbox.live(&event(id, &format!("{attempt}.1")));
    }
    let batch = outbox.take(Instant::now());
    assert_eq!((batch.close, batch.frames.len()), (Some(close::TOO_SLOW), 0));
    assert!(!outbox.live(&terminal(id, 9)));
}

#[test]
fn bytes_are_bounded_too_and_progress_does_not_count() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    for seq in 2..1_000 {
        outbox.live(&progress(id, &format!("1.{seq}")));
    }
    outbox.answer("x".repeat(900).into());
    assert_eq!(outbox.take(Instant::now()).close, None);
    outbox.answer("x".repeat(1_001).into());
    assert_eq!(outbox.take(Instant::now()).close, Some(close::TOO_SLOW));
}

#[test]
fn what_waits_is_sent_before_a_goodbye_and_the_first_goodbye_counts() {
    let (outbox, id) = (Outbox::new(BOUNDS), JobId::mint());
    outbox.live(&terminal(id, 1));
    outbox.close(close::GOING_AWAY);
    outbox.close(close::NORMAL);
    outbox.answer("too late".into());
    let batch = outbox.take(Instant::now());
    assert_eq!((batch.close, batch.frames.len()), (None, 1));
    assert_eq!(outbox.take(Instant::now()).close, Some(close::GOING_AWAY));
}

#[test]
fn progress_is_held_to_the_rate_asked_for_and_events_are_not() {
    let (outbox, id, start) = (Outbox::new(BOUNDS), JobId::mint(), Instant::now());
    outbox.set_max_rate(10.0);
    outbox.live(&progress(id, "1.2"));
    assert_eq!(texts(outbox.take(start)), ["Progress 1.2"]);
    outbox.live(&progress(id, "1.3"));
    let early = outbox.take(start + Duration::from_millis(40));
    assert!(early.frames.is_empty());
    assert_eq!(early.wake_at, Some(start + Duration::from_millis(100)));
    outbox.live(&progress(id, "1.4"));
    assert_eq!(texts(outbox.take(start + Duration::from_millis(100))), ["Progress 1.4"]);
    outbox.live(&terminal(id, 1));
    assert_eq!(texts(outbox.take(start + Duration::from_millis(101))), ["Event 1.2147483647"]);
}

#[tokio::test]
async fn a_writer_wakes_for_new_frames_and_a_snapshot_for_room() {
    let (outbox, id) = (Arc::new(Outbox::new(BOUNDS)), JobId::mint());
    for attempt in 1..=6 {
        outbox.live(&event(id, &format!("{attempt}.1")));
    }
    let (waiter, writer) = (Arc::clone(&outbox), Arc::clone(&outbox));
    let both = async { tokio::join!(waiter.room(), writer.next()) };
    let ((), batch) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
    assert_eq!(batch.frames.len(), 6);
    let filling = async {
        tokio::task::yield_now().await;
        outbox.live(&terminal(id, 9));
    };
    let both = async { tokio::join!(writer.next(), filling) };
    let (batch, ()) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
    assert_eq!(batch.frames.len(), 1);
}
