use proptest::prelude::*;
use serde_json::json;

use super::*;

fn faults(body: &Value) -> Vec<(String, String)> {
    let errors = parse(body, "", &Limits::default()).expect_err("this body is wrong");
    errors.into_iter().map(|error| (error.pointer, error.detail)).collect()
}

#[test]
fn the_first_systems_body_is_accepted_with_sdnexts_defaults() {
    let request =
        parse(&json!({"prompt": "a beautiful landscape", "steps": 10}), "", &Limits::default()).unwrap();
    insta::assert_json_snapshot!(request, @r#"
    {
      "prompt": "a beautiful landscape",
      "steps": 10,
      "cfg_scale": 7.0,
      "width": 512,
      "height": 512,
      "seed": -1,
      "batch_size": 1,
      "n_iter": 1,
      "priority": "normal",
      "pool": "default",
      "previews": true,
      "max_attempts": 3
    }
    "#);
}

#[test]
fn every_fault_is_named_at_once() {
    let found = faults(&json!({
        "prompt": "", "steps": 100_000, "width": "wide", "seed": 1.5, "colour/depth": 1, "pool": "a.b",
        "priority": "urgent", "init_images": [1], "sdnext": {"steps": 3}, "height": 0,
    }));
    let pointers: Vec<&str> = found.iter().map(|(pointer, _)| pointer.as_str()).collect();
    assert_eq!(
        pointers,
        [
            "/prompt",
            "/steps",
            "/width",
            "/height",
            "/seed",
            "/init_images/0",
            "/priority",
            "/pool",
            "/sdnext/steps",
            "/colour~1depth",
        ]
    );
    assert_eq!(found[1].1, "100000 is out of range: 1 to 500");
}

#[test]
fn limits_on_the_whole_are_stated() {
    let found = faults(&json!({"prompt": "x", "batch_size": 9, "n_iter": 9}));
    assert_eq!(found, [("/n_iter".to_owned(), "81 images are more than the limit of 64".to_owned())]);
    let found = faults(&json!({"prompt": "x".repeat(100_000)}));
    assert_eq!(found, [("/prompt".to_owned(), "this has 100000 bytes; the limit is 32768".to_owned())]);
}

#[test]
fn what_an_envelope_could_not_wrap_is_refused() {
    let nested = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    assert!(parse(&json!({"prompt": "x", "sdnext": {"x": nested(60)}}), "", &Limits::default()).is_ok());
    let found = faults(&json!({"prompt": "x", "sdnext": {"x": nested(70)}}));
    assert_eq!(found, [(String::new(), "this is nested more than 64 deep".to_owned())]);
}

#[test]
fn a_name_is_visible() {
    for (field, value) in [("label", "a\0b"), ("model", "\u{7}"), ("sampler_name", "")] {
        assert_eq!(faults(&json!({"prompt": "x", field: value}))[0].0, format!("/{field}"));
    }
}

#[test]
fn only_an_object_is_a_body() {
    for body in [json!(null), json!([]), json!("x"), json!(1)] {
        assert_eq!(faults(&body)[0].1, "this must be an object");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(
                prop_oneof![".{0,8}", prop::sample::select(OWN_FIELDS).prop_map(str::to_owned)],
                inner,
                0..8
            )
            .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn any_body_is_read_without_panic_and_what_is_accepted_reads_back(body in any_json()) {
        if let Ok(request) = parse(&body, "", &Limits::default()) {
            let again: JobRequest = serde_json::from_value(serde_json::to_value(&request).unwrap()).unwrap();
            prop_assert_eq!(again, request);
        }
    }
}
