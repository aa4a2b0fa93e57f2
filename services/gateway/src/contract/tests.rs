use proptest::prelude::*;
use proptest::sample::select;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::*;
use crate::protocol::parse;

struct Validator(boon::Schemas, boon::SchemaIndex);

impl Validator {
    fn new() -> Self {
        let mut generator = SchemaSettings::draft2020_12().for_deserialize().into_generator();
        let mut schema = client(&mut generator);
        schema.insert("$defs".to_owned(), generator.take_definitions(true).into());
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.enable_format_assertions();
        compiler.add_resource("urn:client", schema.into()).unwrap();
        let index = compiler.compile("urn:client", &mut schemas).unwrap();
        Self(schemas, index)
    }

    fn is_valid(&self, message: &Value) -> bool {
        self.0.validate(message, self.1).is_ok()
    }
}

/// What may stand in each field, right and wrong.
fn fields() -> Vec<(&'static str, Vec<Value>)> {
    let id = "01a2060e-5030-73e4-afc0-15e07cda9833";
    let job = json!({"prompt": "a fox"});
    vec![
        (
            "job_ids",
            vec![
                json!(null),
                json!([]),
                json!([id, id.to_uppercase()]),
                json!(["x"]),
                json!([7]),
                json!("x"),
            ],
        ),
        ("job_id", vec![json!(id), json!(null)]),
        ("since", vec![json!(null), json!("2026-11-23T01:44:09.870814Z"), json!("yesterday"), json!(5)]),
        ("max_rate", vec![json!(null), json!(0), json!(0.5), json!(1000), json!(1000.1), json!("5")]),
        ("batch", vec![json!(null), json!(true), json!(false), json!(1)]),
        ("include_previews", vec![json!(null), json!(true), json!("yes")]),
        (
            "previews",
            vec![json!(null), json!("none"), json!("binary"), json!("base64"), json!("all"), json!(1)],
        ),
        ("preview_max_edge", vec![json!(null), json!(0), json!(512), json!(-1), json!(0.5)]),
        ("preview_interval_ms", vec![json!(null), json!(1), json!(0), json!("1")]),
        (
            "topics",
            vec![json!(null), json!(["stats"]), json!(["backends"]), json!(["x"]), json!([]), json!("stats")],
        ),
        ("job", vec![job.clone(), json!(null), json!([]), json!("a fox")]),
        ("jobs", vec![json!([job]), json!([]), json!(null), json!(["a fox"])]),
        ("request_id", vec![json!(null), json!("é".repeat(64)), json!("x".repeat(65)), json!(7)]),
        ("colour", vec![json!("green")]),
    ]
}

/// Messages of every kind, known and not, with any of the fields, right and wrong.
fn messages() -> impl Strategy<Value = Value> {
    let kinds = ["subscribe", "unsubscribe", "ping", "submit", "cancel", "retry", "dance"];
    let fields: Vec<_> = fields()
        .into_iter()
        .map(|(name, values)| (Just(name), proptest::option::weighted(0.25, select(values))))
        .collect();
    (select(kinds.to_vec()), fields).prop_map(|(kind, fields)| {
        let mut message = Map::from_iter([("type".to_owned(), kind.into())]);
        message.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        message.into()
    })
}

#[test]
fn the_schema_takes_what_the_gateway_takes_and_nothing_else() {
    let validator = Validator::new();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4_000));
    let outcome = runner.run(&messages(), |message| {
        let parsed = parse(&message.to_string());
        prop_assert_eq!(parsed.is_ok(), validator.is_valid(&message), "{} {:?}", message, parsed);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn each_field_alone_is_judged_alike() {
    let validator = Validator::new();
    for kind in ["subscribe", "unsubscribe", "ping", "submit", "cancel", "retry"] {
        for (name, values) in fields() {
            for value in values {
                let mut message = json!({"type": kind});
                message[name] = value;
                let parsed = parse(&message.to_string());
                assert_eq!(parsed.is_ok(), validator.is_valid(&message), "{message} {parsed:?}");
            }
        }
    }
}

#[test]
fn what_is_no_message_at_all_is_refused_by_both() {
    let validator = Validator::new();
    for message in [json!({}), json!([]), json!("ping"), json!({"type": 1}), json!({"type": ["ping"]})] {
        assert!(parse(&message.to_string()).is_err() && !validator.is_valid(&message), "{message}");
    }
}
