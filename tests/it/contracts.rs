//! The contracts with other programs: valid by their own rules, true of the examples in the documentation, and able to
//! tell what violates them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use boon::{Compiler, Draft, Schemas};
use serde_json::{Value, json};
use stepcast_tests::contract::{ASYNCAPI, Contract, OPENAPI, SCHEMAS};
use stepcast_tests::nats::NatsServer;
use stepcast_tests::tap::Tap;
use stepcast_tests::wait::until;

const ASYNCAPI_3: &str = include_str!("../contracts/asyncapi-3.0.0.json");
const OPENAPI_3_1: &str = include_str!("../contracts/openapi-3.1.json");

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Holds a document against the schema of its kind.
fn hold(document: &Value, against: &str) {
    let mut schema = parsed(against);
    schema.as_object_mut().unwrap().remove("$id");
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.add_resource("urn:kind", schema).unwrap();
    let index = compiler.compile("urn:kind", &mut schemas).unwrap();
    schemas.validate(document, index).unwrap_or_else(|error| panic!("{error:#}"));
}

fn all(document: &Value, found: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match document {
        Value::Object(fields) => {
            found(fields);
            fields.values().for_each(|value| all(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| all(value, found)),
        _ => {}
    }
}

fn references_hold(document: &Value) {
    let mut count = 0;
    all(document, &mut |fields| {
        let Some(place) = fields.get("$ref").and_then(Value::as_str) else { return };
        let pointer = place.strip_prefix('#').unwrap_or_else(|| panic!("{place} is elsewhere"));
        assert!(document.pointer(pointer).is_some(), "{place} does not exist");
        count += 1;
    });
    assert!(count > 20, "there are references: {count}");
}

#[test]
fn the_schemas_are_json_schema_of_2020_12() {
    let document = parsed(SCHEMAS);
    assert_eq!(document["$schema"], "https://json-schema.org/draft/2020-12/schema");
    references_hold(&document);
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.set_default_draft(Draft::V2020_12);
    compiler.add_resource("urn:stepcast:v1", document.clone()).unwrap();
    let names: Vec<&String> = document["$defs"].as_object().unwrap().keys().collect();
    assert!(names.len() > 50, "{names:?}");
    for name in names {
        // Compiling holds it against the schema of schemas.
        let place = format!("urn:stepcast:v1#/$defs/{name}");
        compiler.compile(&place, &mut schemas).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

#[test]
fn the_asyncapi_document_is_valid_and_whole() {
    let document = parsed(ASYNCAPI);
    hold(&document, ASYNCAPI_3);
    references_hold(&document);
    for (name, operation) in document["operations"].as_object().unwrap() {
        let of_channel = format!("{}/messages/", operation["channel"]["$ref"].as_str().unwrap());
        for message in operation["messages"].as_array().unwrap() {
            assert!(message["$ref"].as_str().unwrap().starts_with(&of_channel), "{name}: {message}");
        }
    }
    // A payload is described in AsyncAPI's own dialect, a superset of draft 7.
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.set_default_draft(Draft::V7);
    compiler.add_resource("urn:asyncapi", document.clone()).unwrap();
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        let place = format!("urn:asyncapi#/components/schemas/{name}");
        compiler.compile(&place, &mut schemas).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

#[test]
fn the_openapi_document_is_valid_and_whole() {
    let document = parsed(OPENAPI);
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1."));
    hold(&document, OPENAPI_3_1);
    references_hold(&document);
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.set_default_draft(Draft::V2020_12);
    compiler.add_resource("urn:openapi", document.clone()).unwrap();
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        let place = format!("urn:openapi#/components/schemas/{name}");
        compiler.compile(&place, &mut schemas).unwrap_or_else(|error| panic!("{name}: {error:#}"));
    }
}

#[test]
fn a_document_that_breaks_the_rules_is_found_out() {
    let mut document = parsed(ASYNCAPI);
    document["operations"]["tellClient"]["action"] = "shout".into();
    assert!(std::panic::catch_unwind(|| hold(&document, ASYNCAPI_3)).is_err());
    let mut document = parsed(OPENAPI);
    document["paths"]["/generation/jobs"]["get"]["responses"] = json!([]);
    assert!(std::panic::catch_unwind(|| hold(&document, OPENAPI_3_1)).is_err());
}

/// A JSON example of a document: what it is called there, and what it says.
struct Example {
    place: String,
    /// The name of its schema, where its `type` does not say it; `shortened` if fields were left out, `later` if it is
    /// not said yet.
    label: String,
    text: String,
}

fn examples(file: &str) -> Vec<Example> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let mut found: Vec<Example> = Vec::new();
    let mut inside = false;
    for (number, line) in text.lines().enumerate() {
        match line.trim().strip_prefix("```") {
            Some(_) if inside => inside = false,
            Some(language) => {
                let (language, label) = language.split_once(' ').unwrap_or((language, ""));
                if language == "json" {
                    inside = true;
                    let place = format!("{file}:{}", number + 1);
                    found.push(Example { place, label: label.to_owned(), text: String::new() });
                }
            }
            None if inside => {
                let example = found.last_mut().unwrap();
                example.text.push_str(line);
                example.text.push('\n');
            }
            None => {}
        }
    }
    found
}

/// The schema of an example: named beside it, or that of its `type`.
fn schema_of(example: &Example, value: &Value) -> String {
    match (example.label.as_str(), value["type"].as_str()) {
        ("" | "shortened" | "later", Some(kind)) if !kind.starts_with('/') => kind.to_owned(),
        ("" | "shortened" | "later", _) => {
            panic!("{}: say which schema this has: ```json NAME", example.place)
        }
        (label, _) => label.to_owned(),
    }
}

#[test]
fn every_example_of_the_documentation_is_what_the_contract_says() {
    let mut seen = BTreeSet::new();
    for file in ["docs/MESSAGES.md", "README.md"] {
        for example in examples(file) {
            // A shortened example has several messages, one to a line.
            let values: Vec<Value> = serde_json::Deserializer::from_str(&example.text)
                .into_iter()
                .map(|value| {
                    value.unwrap_or_else(|error| panic!("{}: {error}\n{}", example.place, example.text))
                })
                .collect();
            assert!(!values.is_empty(), "{} is empty", example.place);
            for value in values {
                let name = schema_of(&example, &value);
                if example.label == "later" {
                    let refused = Contract::get().check(&name, &value).is_err();
                    assert!(refused, "{} is there by now: it is not `later` any more", example.place);
                    continue;
                }
                let outcome = if example.label == "shortened" {
                    Contract::get().check_shortened(&name, &value)
                } else {
                    Contract::get().check(&name, &value)
                };
                outcome.unwrap_or_else(|error| panic!("{}: {error}", example.place));
                seen.insert(name);
            }
        }
    }
    // What a reader would look for has an example.
    let document = parsed(SCHEMAS);
    for union in ["ClientMessage", "ServerMessage"] {
        for member in document["$defs"][union]["oneOf"].as_array().unwrap() {
            let name = member["$ref"].as_str().unwrap().rsplit('/').next().unwrap();
            assert!(seen.contains(name), "docs/MESSAGES.md has no example of {name}");
        }
    }
}

/// Valid messages, to be spoiled.
fn sound() -> Vec<(String, Value)> {
    examples("docs/MESSAGES.md")
        .iter()
        .filter(|example| example.label != "later")
        .map(|example| (example, parsed(&example.text)))
        .map(|(example, value)| (schema_of(example, &value), value))
        .collect()
}

/// Every value with one part of it spoiled: each field left out, or of another kind.
fn spoiled(value: &Value) -> Vec<Value> {
    let Value::Object(fields) = value else { return Vec::new() };
    let mut all = Vec::new();
    for (name, field) in fields {
        let mut without = fields.clone();
        without.remove(name);
        all.push(without.into());
        let mut other = fields.clone();
        other[name] = json!([{"nobody": "expects this"}]);
        all.push(other.into());
        for inner in spoiled(field) {
            let mut other = fields.clone();
            other[name] = inner;
            all.push(other.into());
        }
    }
    let mut more = fields.clone();
    more.insert("nobody_described_this".to_owned(), json!(1));
    all.push(more.into());
    all
}

#[test]
fn what_is_spoiled_is_refused() {
    let (mut refused, mut taken) = (0, 0);
    for (name, value) in sound() {
        for spoiled in spoiled(&value) {
            match Contract::get().check(&name, &spoiled) {
                Ok(()) => taken += 1,
                Err(_) => refused += 1,
            }
        }
    }
    // Some fields may be left out, and in some anything may stand.
    assert!(refused > 500 && taken < refused / 3, "{refused} refused, {taken} taken");
    let mut complete = sound().into_iter().find(|(name, _)| name == "generation_complete").unwrap().1;
    complete["data"]["attempt"] = "1".into();
    let error = Contract::get().check_message(&complete).unwrap_err();
    assert!(error.contains("/data/attempt"), "the path is named: {error}");
    let mut started = sound().into_iter().find(|(name, _)| name == "generation_started").unwrap().1;
    started["data"].as_object_mut().unwrap().remove("backend");
    let error = Contract::get().check_message(&started).unwrap_err();
    assert!(error.contains("backend"), "{error}");
    let unknown =
        json!({"type": "generation_paused", "data": {}, "timestamp": "2026-11-23T01:44:09.870814Z"});
    assert!(Contract::get().check_message(&unknown).is_err(), "a type that nobody described");
}

#[test]
fn a_reader_takes_what_a_later_version_adds() {
    let mut progress = sound().into_iter().find(|(name, _)| name == "progress_update").unwrap().1;
    progress["data"]["stage"] = "upscaling".into();
    progress["data"]["later"] = json!(true);
    assert!(Contract::get().check_message(&progress).is_err(), "it would have to be described");
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.add_resource("urn:published", parsed(SCHEMAS)).unwrap();
    let index = compiler.compile("urn:published#/$defs/progress_update", &mut schemas).unwrap();
    schemas.validate(&progress, index).unwrap_or_else(|error| panic!("{error:#}"));
}

#[tokio::test]
async fn whatever_is_said_on_nats_is_held_against_the_contract() {
    let server = NatsServer::start().await.unwrap();
    let client = async_nats::connect(server.url()).await.unwrap();
    let tap = Tap::start(&client).await.unwrap();
    let state = sound().into_iter().find(|(name, _)| name == "BackendState").unwrap().1;
    let mut wrong = state.clone();
    wrong["updated_at"] = "yesterday".into();
    client.publish("stepcast.v1.backend.sim-0", state.to_string().into()).await.unwrap();
    for (subject, payload) in [
        ("stepcast.v1.backend.sim-0", wrong.to_string()),
        ("stepcast.v1.news", "{}".to_owned()),
        ("stepcast.v1.rpc.dance", "{}".to_owned()),
        ("stepcast.v1.job.default.01a2060e-5030-73e4-afc0-15e07cda9833.progress", state.to_string()),
    ] {
        client.publish(subject, payload.into()).await.unwrap();
    }
    let mut found = Vec::new();
    until("all were found out", async || {
        found.extend(tap.verdict.take());
        (found.len() >= 4).then_some(())
    })
    .await;
    assert_eq!(found.len(), 4, "{found:#?}");
    assert!(found[0].contains("updated_at") && found[1].contains("stepcast.v1.news"), "{found:#?}");
}
