//! The queue, played on a table.

use super::super::timings::Sample;
use super::*;

const MINUTE: f64 = 60.0;

fn server(id: &str, model: Option<&str>, free_in: Option<f64>) -> Server {
    let model = model.map(str::to_owned);
    Server { id: id.to_owned(), pools: vec!["default".to_owned()], model, free_in }
}

fn job(id: &str) -> Waiting {
    Waiting {
        id: id.to_owned(),
        priority: 1,
        pool: "default".to_owned(),
        model: None,
        wanted: None,
        work: Some(1.0),
        waited: 0.0,
        pause: 0.0,
        held_by: None,
    }
}

fn for_model(id: &str, model: &str) -> Waiting {
    Waiting { model: Some(model.to_owned()), ..job(id) }
}

/// Ten seconds for each job on any backend.
fn ten_seconds() -> Timings {
    Timings::learn(&[Sample { backend: "gpu".to_owned(), model: None, work: Some(1.0), seconds: 10.0 }])
}

fn play(queue: &[Waiting], servers: Vec<Server>) -> Outlook {
    Outlook::play(queue, servers, &ten_seconds(), MINUTE, true)
}

fn starts<const N: usize>(outlook: &Outlook, ids: [&str; N]) -> [Option<f64>; N] {
    ids.map(|id| outlook.starts.get(id).copied())
}

#[test]
fn one_backend_takes_one_after_another_once_it_is_free() {
    let outlook = play(&["a", "b", "c"].map(job), vec![server("gpu", None, Some(4.0))]);
    assert_eq!(starts(&outlook, ["a", "b", "c"]), [Some(4.0), Some(14.0), Some(24.0)]);
    assert_eq!(outlook.seconds("new", "default", None, 4), Some(34.0), "behind all of them");
    assert_eq!(outlook.seconds("new", "other", None, 4), None, "nobody serves its pool");
}

#[test]
fn two_backends_share_them_and_one_that_is_asked_for_is_waited_for() {
    let servers = vec![server("one", None, Some(0.0)), server("two", None, Some(3.0))];
    let pinned = Waiting { wanted: Some("one".to_owned()), ..job("pinned") };
    let outlook = play(&[job("a"), job("b"), pinned, job("c")], servers);
    assert_eq!(starts(&outlook, ["a", "b", "pinned", "c"]), [Some(0.0), Some(3.0), Some(10.0), Some(13.0)]);
}

#[test]
fn what_is_loaded_goes_first_until_the_other_has_waited_long_enough() {
    let queue = [for_model("b", "B"), for_model("a1", "A"), for_model("a2", "A"), job("any")];
    let outlook = play(&queue, vec![server("gpu", Some("A"), Some(0.0))]);
    assert_eq!(starts(&outlook, ["a1", "a2", "any", "b"]), [Some(0.0), Some(10.0), Some(20.0), Some(30.0)]);
    assert!(outlook.is_passed_over("b") && !outlook.is_passed_over("a1"));

    let mut queue = queue;
    queue[0].waited = MINUTE - 15.0;
    let outlook = play(&queue, vec![server("gpu", Some("A"), Some(0.0))]);
    assert_eq!(starts(&outlook, ["a1", "a2", "b", "any"]), [Some(0.0), Some(10.0), Some(20.0), Some(30.0)]);
    queue[0].waited = MINUTE;
    assert!(!play(&queue, vec![server("gpu", Some("A"), Some(0.0))]).is_passed_over("b"));
}

#[test]
fn nobody_is_passed_over_where_its_checkpoint_is_loaded_or_nothing_later_profits() {
    let queue = [for_model("b", "B"), for_model("a", "A")];
    let servers = || vec![server("one", Some("A"), Some(0.0)), server("two", Some("B"), None)];
    assert!(!play(&queue, servers()).is_passed_over("b"), "`two` takes it as it is");
    let gpu = || vec![server("gpu", Some("A"), None)];
    assert!(play(&queue, gpu()).is_passed_over("b"), "no time needs to be known for that");
    assert!(!play(&queue[..1], gpu()).is_passed_over("b"));
    let first = Waiting { priority: 2, ..for_model("a", "A") };
    assert!(!play(&[first, for_model("b", "B")], gpu()).is_passed_over("b"), "that is its turn anyway");
    let elsewhere = Waiting { pool: "other".to_owned(), ..for_model("a", "A") };
    assert!(!play(&[for_model("b", "B"), elsewhere], gpu()).is_passed_over("b"));
}

#[test]
fn a_pause_before_another_attempt_is_waited_for_and_others_go_first() {
    let queue = [Waiting { pause: 25.0, ..job("again") }, job("next")];
    let outlook = play(&queue, vec![server("gpu", None, Some(0.0))]);
    assert_eq!(starts(&outlook, ["next", "again"]), [Some(0.0), Some(25.0)]);
}

#[test]
fn a_claimed_job_begins_now_where_it_is_held() {
    let queue = [job("next"), Waiting { held_by: Some("gpu".to_owned()), ..job("held") }];
    let outlook = play(&queue, vec![server("gpu", None, Some(0.0))]);
    assert_eq!(starts(&outlook, ["held", "next"]), [Some(0.0), Some(10.0)]);
}

#[test]
fn priorities_come_first_whatever_is_loaded() {
    let high = Waiting { priority: 2, ..for_model("high", "B") };
    let outlook = play(&[high, for_model("a", "A")], vec![server("gpu", Some("A"), Some(0.0))]);
    assert_eq!(starts(&outlook, ["high", "a"]), [Some(0.0), Some(10.0)]);
}

#[test]
fn what_cannot_be_told_is_not_told() {
    assert_eq!(play(&[job("a")], Vec::new()).seconds("a", "default", None, 1), None, "nobody is there");
    let unknown = play(&[job("a")], vec![server("gpu", None, None)]);
    assert_eq!(unknown.seconds("a", "default", None, 1), None, "nobody knows when it is free");
    let nothing = Timings::default();
    let queue = [job("a"), job("b")];
    let outlook = Outlook::play(&queue, vec![server("gpu", None, Some(3.0))], &nothing, MINUTE, true);
    assert_eq!(starts(&outlook, ["a", "b"]), [Some(3.0), None], "nobody knows how long `a` takes");
    assert_eq!(outlook.seconds("b", "default", None, 2), None);
}

#[test]
fn what_is_too_far_back_waits_in_proportion() {
    let queue: Vec<Waiting> = (0..10).map(|n| job(&n.to_string())).collect();
    let servers = vec![server("gpu", None, Some(0.0))];
    let outlook = Outlook::play(&queue, servers, &ten_seconds(), MINUTE, false);
    assert_eq!(outlook.seconds("far", "default", None, 25), Some(250.0));
}
