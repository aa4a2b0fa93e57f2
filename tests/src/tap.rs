//! Everything that is said on NATS, held against the contract: events, progress, states, requests and answers.

use std::collections::HashMap;

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::SelectAll;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::contract::{Contract, Verdict};
use crate::nats::settled;

/// Published by a service at its start, and refused by the stream: a try whether it compares sequences.
const SELF_TEST: &str = "stepcast.v1.event.self-test.self-test.self-test";

/// A listener that fails the test, when it is dropped at the latest, if anything violates the contract.
pub struct Tap {
    /// What did.
    pub verdict: Verdict,
    _listening: JoinSet<()>,
}

impl Tap {
    /// Listens to all that these services say, and waits until the server knows it.
    pub async fn start(client: &async_nats::Client) -> anyhow::Result<Self> {
        let mut heard = SelectAll::new();
        // Answers to other accounts come by way of a subject that the server makes up.
        for subject in ["stepcast.v1.>", "_INBOX.>", "_R_.>"] {
            heard.push(client.subscribe(subject).await?);
        }
        settled(client).await?;
        let verdict = Verdict::default();
        let violations = verdict.violations();
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            let mut requests = Requests::default();
            while let Some(message) = heard.next().await {
                violations.note(requests.hear(message));
            }
        });
        Ok(Self { verdict, _listening: listening })
    }
}

/// Requests that wait for their answers, by where these go.
#[derive(Default)]
struct Requests(HashMap<String, (String, Bytes)>);

impl Requests {
    fn hear(&mut self, message: Message) -> Result<(), String> {
        let subject = message.subject.as_str();
        if subject == SELF_TEST {
            return Ok(());
        }
        if let Some(name) = subject.strip_prefix("stepcast.v1.rpc.") {
            if Contract::get().channel(subject).is_none() {
                return Err(format!("a request that nobody described: {subject}"));
            }
            // Whether it may be asked like this shows in the answer: tests ask nonsense, too.
            let waits = (name.to_owned(), message.payload);
            if let Some(inbox) = message.reply {
                self.0.insert(inbox.to_string(), waits);
            }
            return Ok(());
        }
        match self.0.remove(message.subject.as_str()) {
            Some((name, request)) => answer(&name, &request, &message),
            None if subject.starts_with("_INBOX.") || subject.starts_with("_R_.") => Ok(()),
            None => said(&message),
        }
    }
}

fn answer(name: &str, request: &[u8], message: &Message) -> Result<(), String> {
    let contract = Contract::get();
    let read = |payload: &[u8]| serde_json::from_slice::<Value>(payload).map_err(|error| error.to_string());
    let headers = message.headers.as_ref();
    let is_refusal = headers.is_some_and(|headers| headers.get("Nats-Service-Error-Code").is_some());
    let outcome = if is_refusal {
        read(&message.payload).and_then(|payload| contract.check("Problem", &payload))
    } else if message.status.is_some() {
        // Nobody answers: the server says so.
        Ok(())
    } else {
        let request = if request.is_empty() { b"{}" } else { request };
        let asked =
            read(request).and_then(|payload| contract.check(&format!("rpc.{name}.request"), &payload));
        asked
            .and_then(|()| read(&message.payload))
            .and_then(|payload| contract.check(&format!("rpc.{name}.answer"), &payload))
    };
    outcome.map_err(|error| format!("stepcast.v1.rpc.{name}: {error}"))
}

fn said(message: &Message) -> Result<(), String> {
    let subject = message.subject.as_str();
    let complain = |error: String| format!("{subject}: {error}");
    let contract = Contract::get();
    let channel =
        contract.channel(subject).ok_or_else(|| complain("no channel of asyncapi.json".to_owned()))?;
    let described = channel["messages"].as_object().ok_or_else(|| complain("says nothing".to_owned()))?;
    if described.values().all(|message| message["payload"]["$ref"].is_null()) {
        return Ok(());
    }
    let payload: Value =
        serde_json::from_slice(&message.payload).map_err(|error| complain(format!("{error}")))?;
    let name = match payload["type"].as_str() {
        Some(kind) => kind,
        None => described.keys().next().map_or("", String::as_str),
    };
    let described = described.get(name).ok_or_else(|| complain(format!("{name} is not said here")))?;
    contract.check(name, &payload).map_err(complain)?;
    if let Some(place) = described["headers"]["$ref"].as_str() {
        let headers = message.headers.as_ref().map(fields).unwrap_or_default();
        contract.check_at(&format!("urn:asyncapi{place}"), &headers).map_err(complain)?;
        let seq = format!("{}.{}", payload["data"]["attempt"], payload["data"]["seq"]);
        if headers["Stepcast-Seq"] != seq {
            return Err(complain(format!("the header says {}, the message {seq}", headers["Stepcast-Seq"])));
        }
    }
    Ok(())
}

fn fields(headers: &HeaderMap) -> Value {
    let first = |values: &Vec<async_nats::HeaderValue>| {
        Value::from(values.first().map_or("", |value| value.as_str()))
    };
    headers.iter().map(|(name, values)| (name.to_string(), first(values))).collect()
}

impl Contract {
    /// The channel of the AsyncAPI document on which a subject is.
    pub fn channel(&self, subject: &str) -> Option<&Value> {
        let fits = |channel: &&Value| {
            let Some(address) = channel["address"].as_str() else { return false };
            let (mut said, mut described) = (subject.split('.'), address.split('.'));
            loop {
                match (said.next(), described.next()) {
                    (None, None) => return true,
                    (Some(token), Some(part)) if token == part => {}
                    (Some(token), Some(part)) if part.starts_with('{') => {
                        let words = &channel["parameters"][part.trim_matches(['{', '}'])]["enum"];
                        let among = |words: &Vec<Value>| words.iter().any(|word| word == token);
                        if !words.as_array().is_none_or(among) {
                            return false;
                        }
                    }
                    _ => return false,
                }
            }
        };
        self.asyncapi["channels"].as_object()?.values().find(fits)
    }
}
