use std::sync::Arc;

use stepcast_shared::messages::EventSeq;

use super::*;
use crate::close;
use crate::frame::Class;
use lanes::Left;

const BOUNDS: Bounds = Bounds { messages: 8, bytes: 1_000 };

fn frame(job_id: JobId, seq: &str, class: Class) -> JobFrame {
    let wire = Wire::text(&format!("{class:?} {seq}"));
    JobFrame { job_id, class, seq: seq.parse().unwrap(), place: 0, wire }
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

fn outbox() -> Outbox {
    Outbox::of_reader(BOUNDS)
}

fn answer(outbox: &Outbox, text: &str) {
    outbox.answer(Wire::text(text));
}

fn taken(outbox: &Outbox) -> Vec<String> {
    take(outbox, Instant::now()).0
}

fn take(outbox: &Outbox, now: Instant) -> (Vec<String>, Left) {
    let mut taken = Vec::new();
    let left = outbox.lock().lanes.take_at(BATCH, &mut taken, || now);
    (texts(&taken), left)
}

fn texts(frames: &[Outgoing]) -> Vec<String> {
    frames.iter().map(|it| String::from_utf8(it.wire.payload().to_vec()).unwrap()).collect()
}

#[test]
fn of_what_is_beside_jobs_the_latest_goes_behind_them() {
    let (outbox, id) = (outbox(), JobId::mint());
    let backend = |id: &str| Matter::Backend(id.parse().unwrap());
    for number in 0..20 {
        outbox.latest(&backend("gpu-1"), &Wire::text(&format!("gpu-1 {number}")));
        outbox.latest(&Matter::Stats, &Wire::text(&format!("stats {number}")));
    }
    outbox.latest(&backend("gpu-0"), &Wire::text("gpu-0"));
    outbox.news(&progress(id, "1.2"));
    outbox.news(&event(id, "1.1"));
    assert_eq!(taken(&outbox), ["Event 1.1", "stats 19", "gpu-0", "gpu-1 19"]);

    outbox.latest(&Matter::Stats, &Wire::text("stats"));
    outbox.latest(&backend("gpu-0"), &Wire::text("gpu-0"));
    outbox.keep_latest_of(&BTreeSet::from([Topic::Backends]));
    assert_eq!(taken(&outbox), ["gpu-0"]);
    outbox.close(close::GOING_AWAY);
    outbox.latest(&Matter::Stats, &Wire::text("too late"));
    assert_eq!(taken(&outbox), [""; 0]);
}

#[test]
fn progress_not_yet_sent_is_replaced_and_events_are_not() {
    let (outbox, id) = (outbox(), JobId::mint());
    outbox.news(&event(id, "1.1"));
    for seq in ["1.2", "1.3", "1.4"] {
        outbox.news(&progress(id, seq));
    }
    assert_eq!(taken(&outbox), ["Event 1.1", "Progress 1.4"]);
    assert_eq!(taken(&outbox), [""; 0]);
}

#[test]
fn an_event_overtakes_no_progress_of_its_job_but_removes_it() {
    let (outbox, id, other) = (outbox(), JobId::mint(), JobId::mint());
    outbox.news(&progress(id, "1.2"));
    outbox.news(&progress(other, "1.9"));
    outbox.news(&terminal(id, 1));
    assert_eq!(taken(&outbox), ["Event 1.2147483647", "Progress 1.9"]);
}

#[test]
fn a_snapshot_comes_before_what_was_live_meanwhile() {
    let (outbox, id) = (outbox(), JobId::mint());
    outbox.hold(&Jobs::Ids(vec![id]));
    outbox.news(&progress(id, "1.7"));
    outbox.news(&progress(id, "1.8"));
    outbox.news(&terminal(id, 1));
    assert!(taken(&outbox).is_empty());
    answer(&outbox, "confirmed");
    outbox.snapshot(&event(id, "1.1"));
    outbox.release();
    assert_eq!(taken(&outbox), ["confirmed", "Event 1.1", "Event 1.2147483647"]);
}

#[test]
fn progress_that_waits_does_not_come_between_a_question_and_its_snapshot() {
    let (outbox, id, other) = (outbox(), JobId::mint(), JobId::mint());
    for id in [id, other] {
        outbox.news(&progress(id, "1.2"));
    }
    outbox.hold(&Jobs::Ids(vec![id]));
    answer(&outbox, "confirmed");
    // The client is written to at any time.
    assert_eq!(taken(&outbox), ["confirmed", "Progress 1.2"]);
    outbox.news(&progress(id, "1.3"));
    outbox.snapshot(&event(id, "1.1"));
    outbox.release();
    assert_eq!(taken(&outbox), ["Event 1.1", "Progress 1.3"]);
}

#[test]
fn a_message_that_is_handed_over_twice_is_sent_once() {
    let (outbox, id) = (outbox(), JobId::mint());
    for _ in 0..2 {
        outbox.news(&event(id, "1.1"));
    }
    assert_eq!(taken(&outbox), ["Event 1.1"]);
}

#[test]
fn the_end_of_a_job_is_told_to_the_session_once() {
    let (outbox, id) = (outbox(), JobId::mint());
    outbox.news(&terminal(id, 2));
    assert_eq!(outbox.take_ended(), [id]);
    assert!(outbox.take_ended().is_empty());
}

#[test]
fn what_a_snapshot_has_told_is_not_told_again_by_what_was_held_back() {
    let (outbox, id) = (outbox(), JobId::mint());
    outbox.hold(&Jobs::All);
    outbox.news(&event(id, "1.1"));
    outbox.news(&progress(id, "1.7"));
    outbox.snapshot(&event(id, "1.1"));
    outbox.snapshot(&progress(id, "1.7"));
    outbox.release();
    assert_eq!(taken(&outbox), ["Event 1.1", "Progress 1.7"]);
    outbox.news(&progress(id, "1.8"));
    assert_eq!(taken(&outbox), ["Progress 1.8"]);
}

#[test]
fn what_is_handed_over_twice_while_it_is_held_back_is_sent_once() {
    let (outbox, id, other) = (outbox(), JobId::mint(), JobId::mint());
    outbox.hold(&Jobs::All);
    for frame in [event(id, "1.1"), event(other, "0.0"), event(id, "1.1")] {
        outbox.news(&frame);
    }
    outbox.release();
    assert_eq!(taken(&outbox), ["Event 1.1", "Event 0.0"]);
}

#[test]
fn progress_of_a_snapshot_does_not_overtake_an_event_that_came_meanwhile() {
    let (outbox, id) = (outbox(), JobId::mint());
    outbox.hold(&Jobs::Ids(vec![id]));
    outbox.news(&event(id, "2.1"));
    outbox.news(&progress(id, "2.2"));
    outbox.snapshot(&event(id, "1.2147483646"));
    outbox.snapshot(&progress(id, "2.2"));
    outbox.release();
    assert_eq!(taken(&outbox), ["Event 1.2147483646", "Event 2.1", "Progress 2.2"]);
}

#[test]
fn a_hold_for_all_covers_jobs_not_heard_of_and_one_by_id_does_not() {
    let (outbox, id) = (outbox(), JobId::mint());
    outbox.hold(&Jobs::All);
    outbox.news(&event(id, "0.0"));
    assert!(taken(&outbox).is_empty());
    outbox.release();
    assert_eq!(taken(&outbox), ["Event 0.0"]);
    outbox.hold(&Jobs::Ids(vec![JobId::mint()]));
    outbox.news(&event(id, "1.1"));
    assert_eq!(taken(&outbox), ["Event 1.1"]);
}

#[test]
fn unsent_progress_of_a_job_no_longer_watched_is_dropped() {
    let (outbox, id, other) = (outbox(), JobId::mint(), JobId::mint());
    outbox.news(&progress(id, "1.7"));
    outbox.news(&progress(other, "1.8"));
    outbox.forget(&Jobs::Ids(vec![id]));
    assert_eq!(taken(&outbox), ["Progress 1.8"]);
}

#[test]
fn a_client_that_cannot_keep_up_is_closed_rather_than_robbed() {
    let (outbox, id) = (outbox(), JobId::mint());
    for attempt in 1..=9 {
        outbox.news(&event(id, &format!("{attempt}.1")));
    }
    let (frames, left) = take(&outbox, Instant::now());
    assert_eq!((left.close, frames.len()), (Some(close::TOO_SLOW), 0));
    outbox.news(&terminal(id, 9));
    assert!(taken(&outbox).is_empty());
}

#[test]
fn bytes_are_bounded_too_and_progress_does_not_count() {
    let (outbox, id) = (outbox(), JobId::mint());
    for seq in 2..1_000 {
        outbox.news(&progress(id, &format!("1.{seq}")));
    }
    answer(&outbox, &"x".repeat(900));
    assert_eq!(take(&outbox, Instant::now()).1.close, None);
    answer(&outbox, &"x".repeat(1_001));
    assert_eq!(take(&outbox, Instant::now()).1.close, Some(close::TOO_SLOW));
}

#[test]
fn what_waits_is_sent_before_a_goodbye_and_the_first_goodbye_counts() {
    let (outbox, id) = (outbox(), JobId::mint());
    outbox.news(&terminal(id, 1));
    outbox.close(close::GOING_AWAY);
    outbox.close(close::NORMAL);
    answer(&outbox, "too late");
    let (frames, left) = take(&outbox, Instant::now());
    assert_eq!((left.close, frames.len()), (None, 1));
    assert_eq!(take(&outbox, Instant::now()).1.close, Some(close::GOING_AWAY));
}

#[test]
fn progress_is_held_to_the_rate_asked_for_and_events_are_not() {
    let (outbox, id, start) = (outbox(), JobId::mint(), Instant::now());
    outbox.set_max_rate(&Jobs::Ids(vec![id]), Some(10.0));
    outbox.news(&progress(id, "1.2"));
    assert_eq!(take(&outbox, start).0, ["Progress 1.2"]);
    outbox.news(&progress(id, "1.3"));
    let (frames, left) = take(&outbox, start + Duration::from_millis(40));
    assert!(frames.is_empty());
    assert_eq!(left.wake_at, Some(start + Duration::from_millis(100)));
    outbox.news(&progress(id, "1.4"));
    assert_eq!(take(&outbox, start + Duration::from_millis(100)).0, ["Progress 1.4"]);
    outbox.news(&terminal(id, 1));
    assert_eq!(take(&outbox, start + Duration::from_millis(101)).0, ["Event 1.2147483647"]);
}

#[test]
fn a_rate_holds_for_the_jobs_that_it_was_asked_for() {
    let (outbox, slow, other, start) = (outbox(), JobId::mint(), JobId::mint(), Instant::now());
    outbox.set_max_rate(&Jobs::Ids(vec![slow]), Some(1.0));
    for seq in ["1.2", "1.3"] {
        outbox.news(&progress(slow, seq));
        outbox.news(&progress(other, seq));
        let (frames, _) = take(&outbox, start);
        assert_eq!(frames.len(), if seq == "1.2" { 2 } else { 1 });
    }
    outbox.set_max_rate(&Jobs::All, Some(1.0));
    outbox.news(&progress(other, "1.4"));
    assert_eq!(take(&outbox, start + Duration::from_millis(1)).0.len(), 1);
    outbox.news(&progress(other, "1.5"));
    assert_eq!(take(&outbox, start + Duration::from_millis(2)).0.len(), 0);
}

#[tokio::test]
async fn a_reader_wakes_for_new_frames_and_a_snapshot_for_room() {
    let (outbox, id) = (Arc::new(outbox()), JobId::mint());
    for attempt in 1..=6 {
        outbox.news(&event(id, &format!("{attempt}.1")));
    }
    let (waiter, reader) = (Arc::clone(&outbox), Arc::clone(&outbox));
    let both = async { tokio::join!(waiter.room(), reader.next()) };
    let ((), (frames, _)) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
    assert_eq!(frames.len(), 6);
    let filling = async {
        tokio::task::yield_now().await;
        let mut round = Round::default();
        round.news(&outbox, &terminal(id, 9));
        round.flush();
    };
    let both = async { tokio::join!(reader.next(), filling) };
    let ((frames, _), ()) = tokio::time::timeout(Duration::from_secs(5), both).await.unwrap();
    assert_eq!(frames.len(), 1);
}

/// A pair of sockets, the first of which soon takes no more.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let narrow = tokio::net::TcpSocket::new_v4().unwrap();
    narrow.set_recv_buffer_size(4 * 1024).unwrap();
    let connecting = narrow.connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connecting);
    (accepted.unwrap().0, connected.unwrap())
}

#[tokio::test]
async fn a_socket_that_falls_behind_gets_every_byte_in_order_once_it_reads() {
    let (ours, mut theirs) = sockets().await;
    let outbox = Outbox::of_socket(Bounds { messages: 100_000, bytes: 1 << 30 }, ours);
    let mut expected = Vec::new();
    for number in 0..50_000 {
        let wire = Wire::text(&format!("{number} {}", "x".repeat(number % 700)));
        expected.extend_from_slice(wire.frame());
        outbox.answer(wire);
        if number % 97 == 0 {
            outbox.flush();
        }
    }
    outbox.close(close::GOING_AWAY);
    expected.extend_from_slice(Wire::close(close::GOING_AWAY).frame());
    outbox.flush();
    assert!(matches!(outbox.standing().phase, Phase::Behind(_)));
    let writing = async {
        while let Phase::Behind(_) = outbox.standing().phase {
            outbox.socket().unwrap().writable().await.unwrap();
            outbox.resume();
        }
        assert_eq!(outbox.standing().phase, Phase::Over(close::GOING_AWAY));
    };
    let mut read = vec![0; expected.len()];
    let reading = tokio::io::AsyncReadExt::read_exact(&mut theirs, &mut read);
    let both = async { tokio::join!(writing, reading) };
    let ((), whole) = tokio::time::timeout(Duration::from_mins(1), both).await.unwrap();
    whole.unwrap();
    assert!(read == expected, "the bytes differ");
}

#[tokio::test]
async fn frames_of_a_round_leave_in_one_write() {
    let (ours, _theirs) = sockets().await;
    ours.writable().await.unwrap();
    let (outbox, id) = (Arc::new(Outbox::of_socket(BOUNDS, ours)), JobId::mint());
    let mut round = Round::default();
    for attempt in 1..=5 {
        round.news(&outbox, &event(id, &format!("{attempt}.1")));
    }
    assert_eq!(round.flush(), Written { frames: 5, writes: 1, joining: 4, conflated: 0 });
    assert!(round.is_empty());
}

#[test]
fn a_round_is_full_of_events_alone() {
    let outboxes = [Arc::new(Outbox::of_reader(BOUNDS)), Arc::new(Outbox::of_reader(BOUNDS))];
    let (mut round, id) = (Round::default(), JobId::mint());
    assert!(!round.is_full());
    for seq in 2..1_000 {
        round.news(&outboxes[0], &progress(id, &format!("1.{seq}")));
        assert!(!round.is_full(), "what replaces itself fills nothing");
    }
    let mut events = (2_u32..).map(|attempt| event(id, &format!("{attempt}.1")));
    let full_after = events.by_ref().position(|event| {
        round.news(&outboxes[0], &event);
        round.is_full()
    });
    assert_eq!(full_after, Some(BATCH - 1));
    round.news(&outboxes[1], &events.next().unwrap());
    assert!(!round.is_full(), "for another connection it is not");
    round.flush();
    assert!(!round.is_full());
}

#[tokio::test]
async fn a_round_that_is_cut_short_is_written_all_the_same() {
    let (ours, _theirs) = sockets().await;
    ours.writable().await.unwrap();
    let (outbox, id) = (Arc::new(Outbox::of_socket(BOUNDS, ours)), JobId::mint());
    let mut round = Round::default();
    round.news(&outbox, &event(id, "1.1"));
    drop(round);
    assert_eq!(outbox.flush().frames, 0, "nothing is left to be written");
    let mut next = Round::default();
    next.news(&outbox, &event(id, "1.2147483646"));
    assert!(!next.is_empty());
}

#[tokio::test]
async fn a_peer_that_is_gone_is_noticed_by_whoever_writes() {
    let (ours, theirs) = sockets().await;
    let outbox = Outbox::of_socket(BOUNDS, ours);
    drop(theirs);
    let lost = async {
        while outbox.standing().phase != Phase::Lost {
            answer(&outbox, "x");
            outbox.flush();
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), lost).await.unwrap();
}
