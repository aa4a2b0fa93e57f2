use proptest::prelude::*;
use serde_json::json;

use super::*;

fn code(text: &str) -> Code {
    parse(text).unwrap_err().code
}

fn complaint(value: &Value) -> String {
    let rejection = parse(&value.to_string()).unwrap_err();
    assert_eq!(rejection.code, Code::InvalidMessage);
    rejection.message
}

#[test]
fn the_oldest_clients_are_understood() {
    let of = |jobs| Subscribe { jobs, topics: BTreeSet::new(), since: None, batch: false, max_rate: None };
    let all = of(Jobs::All);
    for text in [r#"{"type":"subscribe","job_ids":null}"#, r#"{"type":"subscribe"}"#] {
        assert_eq!(parse(text).unwrap().message, ClientMessage::Subscribe(all.clone()));
    }
    let id = JobId::mint();
    let text = json!({"type": "subscribe", "job_ids": [id, id], "include_previews": true}).to_string();
    assert_eq!(parse(&text).unwrap().message, ClientMessage::Subscribe(of(Jobs::Ids(vec![id]))));
    assert_eq!(parse(r#"{"type":"ping","timestamp":17}"#).unwrap().message, ClientMessage::Ping);
}

#[test]
fn who_names_topics_alone_means_no_jobs() {
    let both = BTreeSet::from(Topic::ALL);
    let stats = BTreeSet::from([Topic::Stats]);
    for (fields, jobs, topics) in [
        (json!({"topics": ["backends", "stats"]}), Jobs::Ids(Vec::new()), both.clone()),
        (json!({"topics": ["stats"], "job_ids": null}), Jobs::All, stats.clone()),
        (json!({"topics": ["stats"], "job_ids": []}), Jobs::Ids(Vec::new()), stats),
        (json!({"topics": []}), Jobs::Ids(Vec::new()), BTreeSet::new()),
    ] {
        let say = |kind: &str| {
            let mut message = fields.clone();
            message["type"] = json!(kind);
            parse(&message.to_string()).unwrap().message
        };
        let ClientMessage::Subscribe(subscribe) = say("subscribe") else { panic!("{fields}") };
        assert_eq!((&subscribe.jobs, &subscribe.topics), (&jobs, &topics), "{fields}");
        assert_eq!(say("unsubscribe"), ClientMessage::Unsubscribe(jobs, topics), "{fields}");
    }
    // Who names nothing ends everything, and who names jobs ends those.
    let all = parse(r#"{"type":"unsubscribe"}"#).unwrap().message;
    assert_eq!(all, ClientMessage::Unsubscribe(Jobs::All, both));
    let none = parse(r#"{"type":"unsubscribe","job_ids":[]}"#).unwrap().message;
    assert_eq!(none, ClientMessage::Unsubscribe(Jobs::Ids(Vec::new()), BTreeSet::new()));
}

#[test]
fn each_kind_of_nonsense_has_its_code() {
    for text in ["", "{", "ping", "{\"type\":\"ping\"", &"[".repeat(100_000)] {
        assert_eq!(code(text), Code::InvalidJson, "{text:.20}");
    }
    for text in ["[]", "1", "null", "{}", r#"{"type":1}"#] {
        assert_eq!(code(text), Code::InvalidMessage, "{text}");
    }
    assert_eq!(code(r#"{"type":"dance"}"#), Code::UnknownType);
}

#[test]
fn a_wrong_field_is_named() {
    for (fields, named) in [
        (json!({"type": "subscribe", "job_ids": ["nonsense"]}), "`nonsense`"),
        (json!({"type": "subscribe", "job_ids": [7]}), "`7`"),
        (json!({"type": "subscribe", "job_ids": "x"}), "`job_ids`"),
        (json!({"type": "subscribe", "job_id": "x"}), "`job_ids`"),
        (json!({"type": "subscribe", "since": "yesterday"}), "`since`"),
        (json!({"type": "subscribe", "batch": 1}), "`batch`"),
        (json!({"type": "subscribe", "batch": true, "job_ids": []}), "`job_ids`"),
        (json!({"type": "subscribe", "max_rate": 0}), "`max_rate`"),
        (json!({"type": "subscribe", "max_rate": "5"}), "`max_rate`"),
        (json!({"type": "subscribe", "previews": "all"}), "`previews`"),
        (json!({"type": "subscribe", "include_previews": "yes"}), "`include_previews`"),
        (json!({"type": "subscribe", "preview_max_edge": -1}), "`preview_max_edge`"),
        (json!({"type": "subscribe", "topics": "stats"}), "`topics`"),
        (json!({"type": "subscribe", "topics": ["weather"]}), "weather"),
        (json!({"type": "unsubscribe", "topics": [7]}), "`7`"),
        (json!({"type": "retry"}), "`job_ids` must name the jobs to retry"),
        (json!({"type": "retry", "job_ids": []}), "`job_ids`"),
        (json!({"type": "cancel"}), "`job_ids`"),
        (json!({"type": "cancel", "job_ids": []}), "`job_ids`"),
        (json!({"type": "submit"}), "`job`"),
        (json!({"type": "submit", "jobs": []}), "`jobs`"),
        (json!({"type": "submit", "job": "a cat"}), "object"),
        (json!({"type": "submit", "job": {}, "jobs": [{}]}), "not both"),
        (json!({"type": "ping", "request_id": 7}), "`request_id`"),
        (json!({"type": "ping", "request_id": "x".repeat(65)}), "`request_id`"),
    ] {
        let complaint = complaint(&fields);
        assert!(complaint.contains(named), "{fields}: {complaint}");
    }
}

#[test]
fn a_refusal_carries_the_mark_of_what_it_refuses() {
    let rejection = parse(r#"{"type":"dance","request_id":"r1"}"#).unwrap_err();
    assert_eq!(rejection.request_id.as_deref(), Some("r1"));
}

#[test]
fn a_long_word_is_not_sent_back_whole() {
    let rejection = parse(&json!({"type": "é".repeat(10_000)}).to_string()).unwrap_err();
    assert!(rejection.message.len() < 300);
}

/// What a client would send for a message.
fn to_json(incoming: &Incoming) -> String {
    let ids = |jobs: &Jobs| match jobs {
        Jobs::All => Value::Null,
        Jobs::Ids(ids) => json!(ids),
    };
    let mut value = match &incoming.message {
        ClientMessage::Subscribe(Subscribe { jobs, topics, since, batch, max_rate }) => {
            let since = since.map(|time| time.to_rfc3339());
            json!({
                "type": "subscribe", "job_ids": ids(jobs), "since": since, "batch": batch, "max_rate": max_rate,
                "topics": topics,
            })
        }
        ClientMessage::Unsubscribe(jobs, topics) => {
            json!({"type": "unsubscribe", "job_ids": ids(jobs), "topics": topics})
        }
        ClientMessage::Ping => json!({"type": "ping"}),
        ClientMessage::Submit(jobs) => json!({"type": "submit", "jobs": jobs}),
        ClientMessage::Cancel(ids) => json!({"type": "cancel", "job_ids": ids}),
        ClientMessage::Retry(ids) => json!({"type": "retry", "job_ids": ids}),
    };
    value["request_id"] = json!(incoming.request_id);
    value.to_string()
}

fn any_ids(least: usize) -> impl Strategy<Value = Vec<JobId>> {
    (least..8usize).prop_map(|count| (0..count).map(|_| JobId::mint()).collect())
}

fn any_jobs() -> impl Strategy<Value = Jobs> {
    prop_oneof![Just(Jobs::All), any_ids(0).prop_map(Jobs::Ids)]
}

fn any_topics() -> impl Strategy<Value = BTreeSet<Topic>> {
    proptest::sample::subsequence(Topic::ALL.to_vec(), 0..=2).prop_map(BTreeSet::from_iter)
}

fn any_incoming() -> impl Strategy<Value = Incoming> {
    let time = proptest::option::of(0i64..4_000_000_000_000)
        .prop_map(|millis| millis.and_then(DateTime::from_timestamp_millis));
    let rate = proptest::option::of(1u32..=1_000).prop_map(|rate| rate.map(f64::from));
    let message = prop_oneof![
        (any_jobs(), any_topics(), time, any::<bool>(), rate).prop_map(
            |(jobs, topics, since, batch, max_rate)| {
                let batch = batch && jobs == Jobs::All;
                ClientMessage::Subscribe(Subscribe { jobs, topics, since, batch, max_rate })
            }
        ),
        (any_jobs(), any_topics()).prop_map(|(jobs, topics)| ClientMessage::Unsubscribe(jobs, topics)),
        Just(ClientMessage::Ping),
        proptest::collection::vec(".{0,20}", 1..4).prop_map(|prompts| {
            ClientMessage::Submit(prompts.into_iter().map(|prompt| json!({"prompt": prompt})).collect())
        }),
        any_ids(1).prop_map(ClientMessage::Cancel),
        any_ids(1).prop_map(ClientMessage::Retry),
    ];
    (proptest::option::of(".{0,64}"), message)
        .prop_map(|(request_id, message)| Incoming { request_id, message })
}

proptest! {
    #[test]
    fn what_is_well_said_is_understood_as_said(incoming in any_incoming()) {
        prop_assert_eq!(parse(&to_json(&incoming)), Ok(incoming));
    }

    #[test]
    fn any_text_is_read_without_panic(text in ".{0,400}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_bytes_that_are_text_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_field_of_any_shape_is_read_without_panic(
        kind in "subscribe|unsubscribe|ping|submit|cancel|retry",
        field in "job_ids|job|jobs|since|max_rate|previews|include_previews|preview_max_edge|topics|request_id",
        value in prop_oneof![
            Just(json!(null)), Just(json!(true)), Just(json!(-1)), Just(json!(1e300)), Just(json!([])),
            Just(json!([null, {}, "x"])), Just(json!({})), ".{0,80}".prop_map(Value::String),
        ],
    ) {
        let mut message = json!({"type": kind});
        message[field] = value;
        let _ = parse(&message.to_string());
    }
}
