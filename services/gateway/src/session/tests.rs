use async_nats::RequestErrorKind;
use clap::Parser as _;
use serde_json::{Value, json};
use stepcast_shared::messages::Status;
use stepcast_shared::rpc::{self, Accepted, AcceptedUrls, CancelAnswer, RetryOutcome};

use super::*;
use crate::config::Config;

fn limits() -> Limits {
    let arguments = ["gateway", "--gateway-max-subscriptions", "3", "--gateway-max-pending-requests", "4"];
    Config::parse_from(arguments).gateway.limits
}

/// A session at a fixed time.
struct Talk {
    session: Session,
    now: Instant,
}

impl Talk {
    fn new() -> Self {
        let now = Instant::now();
        let (session, greeting) = Session::new(ConnectionId::mint(), &limits(), now);
        assert!(matches!(greeting, Answer::Connected { .. }));
        Self { session, now }
    }

    fn say(&mut self, message: &Value) -> Vec<Action> {
        self.session.handle(Input::Text(&message.to_string()), self.now)
    }

    /// Says something that is to start one operation, and ends it with an outcome.
    fn settle(&mut self, message: &Value, outcome: impl FnOnce(&Operation) -> Outcome) -> Vec<Action> {
        let operation = started(self.say(message));
        self.session.handle(Input::Done(outcome(&operation)), self.now)
    }

    fn subscribe(&mut self, ids: &[JobId]) {
        let message = json!({"type": "subscribe", "job_ids": ids});
        assert!(self.settle(&message, |_| Outcome::Answered).is_empty());
    }
}

fn started(mut actions: Vec<Action>) -> Operation {
    assert_eq!(actions.len(), 1, "{actions:?}");
    match actions.remove(0) {
        Action::Start(operation) => operation,
        other => panic!("not started: {other:?}"),
    }
}

fn sent(mut actions: Vec<Action>) -> Value {
    assert_eq!(actions.len(), 1, "{actions:?}");
    match actions.remove(0) {
        Action::Send(answer) => serde_json::from_slice(answer.encode().payload()).unwrap(),
        other => panic!("not sent: {other:?}"),
    }
}

fn error_code(actions: Vec<Action>) -> String {
    let answer = sent(actions);
    assert_eq!(answer["type"], "error");
    answer["data"]["code"].as_str().unwrap().to_owned()
}

fn ids(count: usize) -> Vec<JobId> {
    (0..count).map(|_| JobId::mint()).collect()
}

fn accepted(job_id: JobId) -> Accepted {
    Accepted {
        job_id,
        delivery_id: job_id,
        status: Status::Pending,
        position: 1,
        urls: AcceptedUrls::of(job_id),
    }
}

#[test]
fn a_ping_is_answered_with_its_mark() {
    let answer = sent(Talk::new().say(&json!({"type": "ping", "request_id": "r1"})));
    assert_eq!((&answer["type"], &answer["data"]["request_id"]), (&json!("pong"), &json!("r1")));
}

#[test]
fn nonsense_is_answered_and_forgiven() {
    let mut talk = Talk::new();
    let now = talk.now;
    assert_eq!(error_code(talk.session.handle(Input::Text("{"), now)), "invalid_json");
    assert_eq!(error_code(talk.session.handle(Input::Binary, now)), "invalid_message");
    assert_eq!(error_code(talk.say(&json!({"type": "dance"}))), "unknown_type");
    assert_eq!(sent(talk.say(&json!({"type": "ping"})))["type"], "pong");
}

#[test]
fn a_subscribe_becomes_one_operation() {
    let (mut talk, ids) = (Talk::new(), ids(2));
    let message = json!({
        "type": "subscribe", "job_ids": ids, "topics": ["stats"], "max_rate": 5, "since": "2026-01-01T00:00:00Z",
        "request_id": "r",
    });
    let expected = Operation::Subscribe {
        jobs: Jobs::Ids(ids),
        topics: BTreeSet::from([Topic::Stats]),
        since: Some(Since::Time("2026-01-01T00:00:00Z".parse().unwrap())),
        batch: false,
        max_rate: Some(5.0),
        request_id: Some("r".to_owned()),
    };
    assert_eq!(started(talk.say(&message)), expected);
}

#[test]
fn subscriptions_are_bounded_and_given_back_by_unsubscribe_and_by_the_end_of_a_job() {
    let (mut talk, held) = (Talk::new(), ids(3));
    talk.subscribe(&held);
    talk.subscribe(&held);
    let one_more = json!({"type": "subscribe", "job_ids": ids(1)});
    assert_eq!(error_code(talk.say(&one_more)), "too_many_subscriptions");
    assert_eq!(error_code(talk.say(&json!({"type": "submit", "job": {}}))), "too_many_subscriptions");

    let operation = started(talk.say(&json!({"type": "unsubscribe", "job_ids": [held[0]]})));
    let Operation::Unsubscribe { remaining: Jobs::Ids(mut remaining), .. } = operation else {
        panic!("{operation:?}")
    };
    remaining.sort_unstable();
    assert_eq!(remaining, held[1..]);
    talk.subscribe(&ids(1));
    assert_eq!(error_code(talk.say(&one_more)), "too_many_subscriptions");

    let actions = talk.session.handle(Input::Finished(vec![held[1]]), talk.now);
    assert!(matches!(&actions[..], [Action::Release(released)] if *released == [held[1]]), "{actions:?}");
    talk.subscribe(&ids(1));
}

#[test]
fn whoever_watches_all_still_does_after_leaving_one() {
    let mut talk = Talk::new();
    assert!(talk.settle(&json!({"type": "subscribe"}), |_| Outcome::Answered).is_empty());
    let operation = started(talk.say(&json!({"type": "unsubscribe", "job_ids": ids(1)})));
    assert!(matches!(operation, Operation::Unsubscribe { remaining: Jobs::All, .. }), "{operation:?}");
    let operation = started(talk.say(&json!({"type": "unsubscribe", "job_ids": null})));
    assert!(matches!(operation, Operation::Unsubscribe { remaining: Jobs::Ids(ids), .. } if ids.is_empty()));
}

#[test]
fn an_unsubscribe_leaves_the_topics_that_it_does_not_name() {
    let mut talk = Talk::new();
    let message = json!({"type": "subscribe", "topics": ["stats", "backends"]});
    assert!(talk.settle(&message, |_| Outcome::Answered).is_empty());
    let left = |operation: Operation| match operation {
        Operation::Unsubscribe { topics, .. } => topics,
        other => panic!("{other:?}"),
    };
    let operation = started(talk.say(&json!({"type": "unsubscribe", "job_ids": ids(1)})));
    assert_eq!(left(operation), BTreeSet::from(Topic::ALL));
    let operation = started(talk.say(&json!({"type": "unsubscribe", "topics": ["stats"]})));
    assert_eq!(left(operation), BTreeSet::from([Topic::Backends]));
    assert_eq!(left(started(talk.say(&json!({"type": "unsubscribe"})))), BTreeSet::new());
}

#[test]
fn an_accepted_job_is_announced_and_then_followed() {
    let (mut talk, id) = (Talk::new(), JobId::mint());
    let message = json!({"type": "submit", "job": {"prompt": "a cat"}, "request_id": "r"});
    let mut actions = talk.settle(&message, |_| {
        Outcome::Submitted(SubmitAnswer { jobs: vec![accepted(id)] }, Some("r".to_owned()))
    });
    assert_eq!(started(vec![actions.pop().unwrap()]), Operation::Follow { ids: vec![id] });
    let answer = sent(actions);
    assert_eq!(answer["type"], "submitted");
    assert_eq!(answer["data"]["request_id"], "r");
    assert_eq!(answer["data"]["jobs"][0]["delivery_id"], json!(id));
}

#[test]
fn whoever_watches_all_need_not_follow_what_it_submits() {
    let mut talk = Talk::new();
    assert!(talk.settle(&json!({"type": "subscribe"}), |_| Outcome::Answered).is_empty());
    let actions = talk.settle(&json!({"type": "submit", "job": {}}), |_| {
        Outcome::Submitted(SubmitAnswer { jobs: vec![accepted(JobId::mint())] }, None)
    });
    assert_eq!(sent(actions)["type"], "submitted");
}

#[test]
fn what_is_submitted_again_is_followed_and_what_is_not_is_said() {
    let (mut talk, again) = (Talk::new(), JobId::mint());
    let (known, unknown) = (JobId::mint(), JobId::mint());
    let outcome = |job_id, job: Option<Accepted>| RetryOutcome {
        job_id,
        success: job.is_some(),
        message: String::new(),
        job,
    };
    let jobs = vec![outcome(known, Some(accepted(again))), outcome(unknown, None)];
    let mut actions = talk.settle(&json!({"type": "retry", "job_ids": [known, unknown]}), |operation| {
        assert_eq!(*operation, Operation::Retry { ids: vec![known, unknown], request_id: None });
        Outcome::Retried(RetryAnswer { jobs }, None)
    });
    assert_eq!(started(vec![actions.pop().unwrap()]), Operation::Follow { ids: vec![again] });
    let answer = sent(actions);
    assert_eq!(answer["type"], "retry_result");
    assert_eq!(answer["data"]["jobs"][0]["job"]["job_id"], json!(again));
    assert_eq!(answer["data"]["jobs"][1]["success"], false);
}

#[test]
fn silence_of_another_service_is_said() {
    let mut talk = Talk::new();
    let actions = talk.settle(&json!({"type": "cancel", "job_ids": ids(1)}), |_| {
        Outcome::Refused(rpc::Error::Unavailable(RequestErrorKind::NoResponders.to_string().into()), None)
    });
    assert_eq!(error_code(actions), "unavailable");
    let actions = talk.settle(&json!({"type": "cancel", "job_ids": ids(1)}), |_| {
        Outcome::Cancelled(CancelAnswer { jobs: Vec::new() }, Some("c".to_owned()))
    });
    assert_eq!(sent(actions)["type"], "cancel_result");
}

#[test]
fn only_so_many_requests_wait() {
    let mut talk = Talk::new();
    for _ in 0..4 {
        started(talk.say(&json!({"type": "subscribe"})));
    }
    assert_eq!(error_code(talk.say(&json!({"type": "subscribe"}))), "rate_limited");
    assert_eq!(sent(talk.say(&json!({"type": "ping"})))["type"], "pong");
    assert!(talk.session.handle(Input::Done(Outcome::Answered), talk.now).is_empty());
    started(talk.say(&json!({"type": "subscribe"})));
}

#[test]
fn who_says_too_much_is_told_and_then_closed() {
    let mut talk = Talk::new();
    let ping = json!({"type": "ping"});
    let burst = limits().message_burst;
    for _ in 0..burst {
        assert_eq!(sent(talk.say(&ping))["type"], "pong");
    }
    assert_eq!(error_code(talk.say(&ping)), "rate_limited");
    talk.now += Duration::from_secs(1);
    assert_eq!(sent(talk.say(&ping))["type"], "pong");
    let closed = (0..20 * burst)
        .any(|_| matches!(talk.say(&ping)[..], [Action::Close(close)] if close == close::FLOOD));
    assert!(closed);
}

#[test]
fn a_peer_that_is_silent_for_two_heartbeats_is_closed() {
    let mut talk = Talk::new();
    let beat = limits().heartbeat;
    let tick = |talk: &mut Talk, beats: u32| {
        let at = talk.now + beats * beat;
        talk.session.handle(Input::Tick, at)
    };
    assert!(matches!(tick(&mut talk, 1)[..], [Action::Ping]));
    assert!(talk.session.handle(Input::Alive, talk.now + beat).is_empty());
    assert!(matches!(tick(&mut talk, 2)[..], [Action::Ping]));
    assert!(matches!(tick(&mut talk, 3)[..], [Action::Close(close::SILENT)]));
}

#[test]
fn a_stopping_server_says_when_to_come_back() {
    let mut talk = Talk::new();
    let reconnect_after = Duration::from_millis(1_730);
    let mut actions = talk.session.handle(Input::Stopping { reconnect_after }, talk.now);
    assert!(matches!(actions.pop(), Some(Action::Close(close::GOING_AWAY))));
    assert_eq!(sent(actions)["data"]["reconnect_after_ms"], 1_730);
}
