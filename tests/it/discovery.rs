//! The micro service, as another service finds it with the rights of a reader.

use std::collections::BTreeSet;

use async_nats::Client;
use boon::{Compiler, Draft, Schemas};
use serde_json::{Value, json};
use stepcast_sdnext_sim::Config;
use stepcast_tests::contract::Contract;
use stepcast_tests::guarded::Guarded;
use stepcast_tests::wait::until;

async fn ask(client: &Client, subject: &str, request: &str) -> Value {
    // The service is there as soon as somebody answers.
    let answer = until(&format!("{subject} is answered"), async || {
        client.request(subject.to_owned(), request.to_owned().into()).await.ok()
    })
    .await;
    serde_json::from_slice(&answer.payload).unwrap()
}

fn is_valid(schema: &Value, value: &Value) -> bool {
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.set_default_draft(Draft::V2020_12);
    compiler.add_resource("urn:asked", schema.clone()).unwrap();
    let index = compiler.compile("urn:asked", &mut schemas).unwrap();
    schemas.validate(value, index).is_ok()
}

#[tokio::test]
async fn a_reader_finds_the_service_what_it_answers_and_the_schemas_of_that() {
    let all = Guarded::start(Config::default()).await.unwrap();
    let reader = all.client("reader").await;
    assert_eq!(ask(&reader, "$SRV.PING.stepcast", "").await["name"], "stepcast");
    let info = ask(&reader, "$SRV.INFO.stepcast", "").await;
    let stats = ask(&reader, "$SRV.STATS.stepcast", "").await;
    let names = |answer: &Value| -> BTreeSet<String> {
        let endpoints = answer["endpoints"].as_array().unwrap();
        endpoints.iter().map(|endpoint| endpoint["name"].as_str().unwrap().to_owned()).collect()
    };
    let channels = Contract::get().asyncapi["channels"].as_object().unwrap();
    let described = channels.values().filter_map(|channel| channel["address"].as_str());
    let described: BTreeSet<String> =
        described.filter_map(|address| address.strip_prefix("stepcast.v1.rpc.")).map(str::to_owned).collect();
    assert_eq!(names(&info), described, "what is served is what docs/contracts describes");
    assert_eq!(names(&stats), described);
    for endpoint in info["endpoints"].as_array().unwrap() {
        assert_eq!(endpoint["subject"], format!("stepcast.v1.rpc.{}", endpoint["name"].as_str().unwrap()));
        assert!(!endpoint["metadata"]["description"].as_str().unwrap().is_empty(), "{endpoint}");
        // It says how to ask for the schemas, so it is asked like that.
        let (subject, question) = endpoint["metadata"]["schema"].as_str().unwrap().split_once(' ').unwrap();
        let schemas = ask(&reader, subject, question).await;
        assert_eq!(schemas["endpoints"].as_array().unwrap().len(), 1);
        assert_eq!(schemas["endpoints"][0]["name"], endpoint["name"]);
    }
    let whole = ask(&reader, "stepcast.v1.rpc.schema", "").await;
    assert_eq!(names(&whole), described);

    let get = ask(&reader, "stepcast.v1.rpc.schema", r#"{"name":"get"}"#).await["endpoints"][0].take();
    let id = all.http().submit(&json!({"prompt": "a fox", "steps": 2})).await;
    let question = json!({"job_id": id});
    assert!(is_valid(&get["request"], &question) && !is_valid(&get["request"], &json!({"job_id": "x"})));
    let job = ask(&reader, "stepcast.v1.rpc.get", &question.to_string()).await;
    assert!(is_valid(&get["answer"], &job), "{job}");
    assert!(!is_valid(&get["answer"], &json!({"job_id": id})));

    let answer = reader.request("stepcast.v1.rpc.schema", r#"{"name":"dance"}"#.into()).await.unwrap();
    let code = answer.headers.unwrap().get("Nats-Service-Error-Code").unwrap().as_str().to_owned();
    assert_eq!(code, "404");
    let refused = all.bus.violations();
    assert!(
        !refused.iter().any(|line| line.contains("/user:reader\"")),
        "nothing of this needs more: {refused:#?}"
    );
    for (path, document) in
        [("/asyncapi.json", &Contract::get().asyncapi), ("/openapi.json", &Contract::get().openapi)]
    {
        let answer = all.http().get(path).await;
        assert!(answer.status == 200 && answer.headers["content-type"] == "application/json", "{path}");
        assert!(answer.json == *document, "{path} is what docs/contracts holds");
    }
}
