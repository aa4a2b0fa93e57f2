use futures_util::FutureExt as _;

use super::*;
use crate::feed::Feed;
use crate::frame::Class;
use crate::outbox::Bounds;
use crate::protocol::Jobs;
use crate::ws::Wire;

const LINGER: Duration = Duration::from_secs(2);

fn outbox() -> Arc<Outbox> {
    Arc::new(Outbox::of_reader(Bounds { messages: 100, bytes: 100_000 }))
}

fn frame(job_id: JobId, seq: &str, class: Class) -> JobFrame {
    JobFrame { job_id, class, seq: seq.parse().unwrap(), place: 0, wire: Wire::text(seq) }
}

/// A subscription, and whether it has ended.
fn subscription() -> (Ended, Subscription) {
    let feed = Arc::new(Feed::default());
    let subscription = feed.subscribe("a.subject");
    (Ended(feed), subscription)
}

struct Ended(Arc<Feed>);

impl Ended {
    fn is_so(&self) -> bool {
        self.0.subscriptions() == 0
    }
}

/// What waits in an outbox, taken.
fn frames(outbox: &Outbox) -> Vec<String> {
    let (taken, _) = outbox.next().now_or_never().unwrap_or_default();
    taken.iter().map(|it| String::from_utf8(it.wire.payload().to_vec()).unwrap()).collect()
}

fn deliver(table: &mut Table, owner: &Owner, frame: &JobFrame) -> usize {
    table.deliver(owner, frame, &mut Round::default())
}

/// A table in which member 1 watches `id` by its own subscription.
fn watching(id: JobId, now: Instant) -> (Table, Arc<Outbox>, Ended) {
    let (mut table, outbox, owner) = (Table::default(), outbox(), Owner::anonymous());
    table.watch_job(&owner, id, 1, &outbox, now);
    assert_eq!(table.unsubscribed(&owner, &[id]), [id]);
    let (ended, subscription) = subscription();
    table.job(&owner, id).topic.subscription = Some(subscription);
    assert!(table.unsubscribed(&owner, &[id]).is_empty());
    (table, outbox, ended)
}

#[test]
fn a_message_reaches_those_who_asked_for_its_job_and_nobody_else() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, _outbox, _ended) = watching(id, now);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.1", Class::Event)), 1);
    assert_eq!(deliver(&mut table, &owner, &frame(JobId::mint(), "1.1", Class::Event)), 0);
    assert_eq!(deliver(&mut table, &"other".parse().unwrap(), &frame(id, "1.2", Class::Event)), 0);
    table.watch_all(&owner, 2, &outbox(), false, now);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.2", Class::Event)), 2);
    assert_eq!(deliver(&mut table, &owner, &frame(JobId::mint(), "1.1", Class::Event)), 1);
}

#[test]
fn a_subscription_lingers_and_survives_a_quick_return() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, outbox, ended) = watching(id, now);
    table.unwatch_job(&owner, id, 1, now);
    drop(table.take_idle(now + LINGER / 2, LINGER));
    assert!(!ended.is_so());
    table.watch_job(&owner, id, 1, &outbox, now);
    drop(table.take_idle(now + 2 * LINGER, LINGER));
    assert!(!ended.is_so());
    table.unwatch_job(&owner, id, 1, now);
    drop(table.take_idle(now + LINGER, LINGER));
    assert!(ended.is_so());
    assert!(table.owners.is_empty());
}

#[test]
fn single_jobs_ride_on_a_wildcard_and_get_off_before_it_ends() {
    let (start, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, _outbox, single_ended) = watching(id, start);
    assert!(!table.watch_all(&owner, 2, &outbox(), false, start));
    let (wildcard_ended, wildcard) = subscription();
    table.set_wildcard(&owner, wildcard, start);
    // Both for a while, then the wildcard alone, also for newcomers.
    drop(table.take_idle(start, LINGER));
    assert!(!single_ended.is_so());
    drop(table.take_idle(start + LINGER, LINGER));
    assert!(single_ended.is_so());
    let newcomer = JobId::mint();
    table.watch_job(&owner, newcomer, 3, &outbox(), start);
    assert!(table.unsubscribed(&owner, &[id, newcomer]).is_empty());

    let leaving = start + 2 * LINGER;
    table.unwatch_all(&owner, 2, leaving);
    assert!(table.retiring_wildcards(leaving, LINGER).is_empty());
    let retiring = table.retiring_wildcards(leaving + LINGER, LINGER);
    let [(_, riding)] = &retiring[..] else { panic!("{retiring:?}") };
    assert_eq!(riding.len(), 2);
    assert_eq!(table.unsubscribed(&owner, &[id]), [id]);
    drop(table.take_idle(leaving + LINGER, LINGER));
    assert!(!wildcard_ended.is_so());
    assert!(table.retiring_wildcards(leaving + 2 * LINGER, LINGER).is_empty());
    drop(table.take_idle(leaving + 2 * LINGER, LINGER));
    assert!(wildcard_ended.is_so());
}

#[test]
fn nothing_goes_back_and_nothing_follows_the_end() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, _outbox, _ended) = watching(id, now);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "2.5", Class::Progress)), 1);
    for old in ["2.5", "2.4", "1.2147483646"] {
        assert_eq!(deliver(&mut table, &owner, &frame(id, old, Class::Progress)), 0, "{old}");
    }
    assert_eq!(deliver(&mut table, &owner, &frame(id, "2.2147483647", Class::Event)), 1);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "2.2147483647", Class::Event)), 0);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "3.1", Class::Event)), 0);
}

#[test]
fn who_came_later_and_was_told_nothing_is_told_when_the_job_is_read_again() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, _outbox, _ended) = watching(id, now);
    deliver(&mut table, &owner, &frame(id, "1.1", Class::Event));
    deliver(&mut table, &owner, &frame(id, "1.7", Class::Progress));
    let late = outbox();
    table.watch_job(&owner, id, 2, &late, now);
    table.doubt(&owner, &[id], 2);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.1", Class::Event)), 1);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.1", Class::Event)), 0);
    assert_eq!(frames(&late), ["1.1", "1.7"]);
}

#[test]
fn who_was_there_for_an_event_is_not_told_again_although_the_snapshot_fails() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let mut table = Table::default();
    let (early, late) = (outbox(), outbox());
    early.hold(&Jobs::All);
    table.watch_all(&owner, 1, &early, false, now);
    deliver(&mut table, &owner, &frame(id, "0.0", Class::Event));
    table.watch_all(&owner, 2, &late, false, now);
    table.note(&owner, &[id], Some(1), now);
    table.note(&owner, &[id], Some(2), now);
    early.release();
    deliver(&mut table, &owner, &frame(id, "0.0", Class::Event));
    assert_eq!((frames(&early), frames(&late)), (vec!["0.0".to_owned()], vec!["0.0".to_owned()]));
}

#[test]
fn what_a_snapshot_tells_first_is_news_to_the_others_and_no_news_afterwards() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, early, _ended) = watching(id, now);
    deliver(&mut table, &owner, &frame(id, "1.1", Class::Event));
    let late = outbox();
    table.watch_job(&owner, id, 2, &late, now);
    let events = HashMap::from([(id, frame(id, "1.2147483647", Class::Event))]);
    assert!(table.settle(&owner, 2, &[id], &events, &mut Round::default()).is_empty());
    assert_eq!(frames(&early), ["1.1", "1.2147483647"]);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.2147483647", Class::Event)), 0);
}

#[test]
fn a_snapshot_of_a_job_that_nobody_knew_is_told_to_nobody_else() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let mut table = Table::default();
    let (dashboard, other) = (outbox(), outbox());
    table.watch_all(&owner, 1, &dashboard, false, now);
    table.watch_job(&owner, id, 2, &other, now);
    let events = HashMap::from([(id, frame(id, "1.2147483647", Class::Event))]);
    table.settle(&owner, 2, &[id], &events, &mut Round::default());
    assert!(frames(&dashboard).is_empty());
}

#[test]
fn a_job_that_was_unknown_is_told_to_all_who_had_asked_for_it() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, early, _ended) = watching(id, now);
    table.settle(&owner, 1, &[id], &HashMap::new(), &mut Round::default());
    table.watch_job(&owner, id, 2, &outbox(), now);
    let events = HashMap::from([(id, frame(id, "0.2147483647", Class::Event))]);
    table.settle(&owner, 2, &[id], &events, &mut Round::default());
    assert_eq!(frames(&early), ["0.2147483647"]);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "0.2147483647", Class::Event)), 0);
}

#[test]
fn an_event_that_a_snapshot_overtook_still_reaches_who_watches_all() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let mut table = Table::default();
    let (dashboard, other) = (outbox(), outbox());
    table.watch_all(&owner, 1, &dashboard, false, now);
    table.watch_job(&owner, id, 2, &other, now);
    let queued = frame(id, "0.0", Class::Event);
    table.settle(&owner, 2, &[id], &HashMap::from([(id, queued.clone())]), &mut Round::default());
    frames(&other);
    assert_eq!(deliver(&mut table, &owner, &queued), 1);
    assert_eq!((frames(&dashboard), frames(&other)), (vec!["0.0".to_owned()], Vec::new()));
    assert_eq!(deliver(&mut table, &owner, &queued), 0);
}

#[test]
fn an_old_event_does_not_stand_in_for_a_later_one_that_was_missed() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, _outbox, _ended) = watching(id, now);
    let end = frame(id, "1.2147483647", Class::Event);
    deliver(&mut table, &owner, &end);
    let late = outbox();
    table.watch_job(&owner, id, 2, &late, now);
    table.doubt(&owner, &[id], 2);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.1", Class::Event)), 0);
    assert_eq!(deliver(&mut table, &owner, &end), 1);
    assert_eq!(frames(&late), ["1.2147483647"]);
}

#[test]
fn who_was_told_less_than_others_have_had_is_told_the_rest() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, _outbox, _ended) = watching(id, now);
    let end = frame(id, "1.2147483647", Class::Event);
    deliver(&mut table, &owner, &end);
    let late = outbox();
    table.watch_job(&owner, id, 2, &late, now);
    table.doubt(&owner, &[id], 2);
    // A snapshot from a server that is behind.
    let started = HashMap::from([(id, frame(id, "1.1", Class::Event))]);
    table.settle(&owner, 2, &[id], &started, &mut Round::default());
    assert_eq!(table.due(now, 10).len(), 1);
    assert_eq!(deliver(&mut table, &owner, &end), 1);
    assert_eq!(frames(&late), ["1.2147483647"]);
}

#[test]
fn a_replay_tells_others_no_place_since_they_may_lack_what_was_recorded_before() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let at = |place, seq| JobFrame { place, ..frame(id, seq, Class::Event) };
    let places = |outbox: &Outbox| -> Vec<u64> {
        let (taken, _) = outbox.next().now_or_never().unwrap_or_default();
        taken.iter().map(|it| it.place).collect()
    };
    let (mut table, early) = (Table::default(), outbox());
    table.watch_all(&owner, 1, &early, false, now);
    deliver(&mut table, &owner, &at(4, "0.0"));
    assert_eq!(places(&early), [4]);
    table.watch_all(&owner, 2, &outbox(), false, now);
    let replayed = HashMap::from([(id, at(9, "1.0"))]);
    table.settle(&owner, 2, &[id], &replayed, &mut Round::default());
    assert_eq!(places(&early), [0], "5 to 8 may be of other jobs and on their way");
    deliver(&mut table, &owner, &at(12, "1.2147483647"));
    assert_eq!(places(&early), [12]);
}

#[test]
fn nothing_follows_an_end_that_a_replay_has_told() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let mut table = Table::default();
    table.watch_all(&owner, 1, &outbox(), false, now);
    let events = HashMap::from([(id, frame(id, "1.2147483647", Class::Event))]);
    table.settle(&owner, 1, &[id], &events, &mut Round::default());
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.9", Class::Progress)), 0);
}

#[test]
fn a_batch_tells_nothing_that_was_overtaken_and_nothing_twice() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let mut table = Table::default();
    let batched = outbox();
    table.watch_all(&owner, 1, &batched, true, now);
    deliver(&mut table, &owner, &frame(id, "2.1", Class::Event));
    // A poller that was given up goes on.
    deliver(&mut table, &owner, &frame(id, "1.9", Class::Progress));
    table.send_batches(&mut Round::default());
    assert_eq!(frames(&batched), ["2.1"]);

    deliver(&mut table, &owner, &frame(id, "2.2", Class::Progress));
    let started = HashMap::from([(id, frame(id, "2.1", Class::Event))]);
    let progress = table.settle(&owner, 1, &[id], &started, &mut Round::default());
    assert!(progress.is_empty(), "the next batch tells it");
    // Somebody's snapshot brings the end before it comes live.
    let end = HashMap::from([(id, frame(id, "2.2147483647", Class::Event))]);
    table.watch_job(&owner, id, 2, &outbox(), now);
    table.settle(&owner, 2, &[id], &end, &mut Round::default());
    table.send_batches(&mut Round::default());
    assert_eq!(frames(&batched), ["2.2147483647"]);
}

#[test]
fn progress_comes_at_once_or_in_batches_and_events_always_at_once() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let mut table = Table::default();
    let (plain, batched) = (outbox(), outbox());
    table.watch_all(&owner, 1, &plain, false, now);
    table.watch_all(&owner, 2, &batched, true, now);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.1", Class::Event)), 2);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.2", Class::Progress)), 1);
    assert_eq!(deliver(&mut table, &owner, &frame(id, "1.3", Class::Progress)), 1);
    assert_eq!(frames(&batched), ["1.1"]);
    table.send_batches(&mut Round::default());
    let [batch] = &frames(&batched)[..] else { panic!("not one batch") };
    assert!(batch.contains("\"messages\":[1.3]"), "{batch}");
    table.send_batches(&mut Round::default());
    assert!(frames(&batched).is_empty());
}

#[test]
fn the_last_progress_is_kept_for_latecomers_until_its_attempt_ends() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let (mut table, _outbox, _ended) = watching(id, now);
    deliver(&mut table, &owner, &frame(id, "1.5", Class::Progress));
    deliver(&mut table, &owner, &frame(id, "1.4", Class::Progress));
    deliver(&mut table, &owner, &frame(id, "1.1", Class::Event));
    assert_eq!(table.job(&owner, id).progress().unwrap().wire.payload(), b"1.5");
    deliver(&mut table, &owner, &frame(id, "1.2147483646", Class::Event));
    assert!(table.job(&owner, id).progress().is_none());
}

#[test]
fn unfinished_watched_jobs_fall_due_and_finished_ones_do_not() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let later = now + Duration::from_secs(1);
    let (mut table, outbox, _ended) = watching(id, later);
    assert!(table.due(now, 10).is_empty());
    assert_eq!(table.due(later, 10), [(owner.clone(), vec![id])]);
    table.set_due(&owner, &[id], later + Duration::from_secs(1));
    assert!(table.due(later, 10).is_empty());
    table.all_due(now);
    assert_eq!(table.due(now, 10).len(), 1);
    deliver(&mut table, &owner, &frame(id, "1.2147483647", Class::Event));
    assert!(table.due(later, 10).is_empty());
    table.watch_job(&owner, id, 4, &outbox, now);
    table.doubt(&owner, &[id], 4);
    assert_eq!(table.due(now, 10).len(), 1);
}

#[test]
fn the_longest_overdue_are_read_first() {
    let (now, owner) = (Instant::now(), Owner::anonymous());
    let mut table = Table::default();
    table.watch_all(&owner, 1, &outbox(), false, now);
    let ids: Vec<JobId> = (0..100).map(|_| JobId::mint()).collect();
    for (age, id) in ids.iter().enumerate() {
        let due = now + Duration::from_millis(100 - age as u64);
        table.note(&owner, &[*id], None, due);
    }
    let (_, mut first) = table.due(now + Duration::from_secs(1), 10).remove(0);
    first.sort_unstable();
    assert_eq!(first, ids[90..]);
}

#[test]
fn jobs_of_an_owner_are_noted_only_while_all_are_watched() {
    let (now, owner, id) = (Instant::now(), Owner::anonymous(), JobId::mint());
    let mut table = Table::default();
    table.note(&owner, &[id], None, now);
    assert!(table.due(now, 10).is_empty());
    table.watch_all(&owner, 1, &outbox(), false, now);
    table.note(&owner, &[id], None, now);
    deliver(&mut table, &owner, &frame(JobId::mint(), "0.0", Class::Event));
    assert_eq!(table.due(Instant::now(), 10)[0].1.len(), 2);
    assert_eq!(table.due(Instant::now(), 1)[0].1.len(), 1);
    assert_eq!(table.watched_owners(), std::slice::from_ref(&owner));
    table.unwatch_all(&owner, 1, now);
    assert!(table.due(Instant::now(), 10).is_empty());
    drop(table.take_idle(now, LINGER));
    assert!(table.owners.is_empty());
}
