//! The schema of every message, each under a name: what the services have, put side by side.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform as _};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};
use stepcast_shared::messages::{BackendState, Envelope, JobMessage};
use stepcast_shared::problem::Problem;

/// All schemas in one dialect. Messages are named as their `type`, requests `rpc.<name>.request` and
/// `rpc.<name>.answer`, and what they consist of as its Rust type.
pub struct Schemas {
    /// By name.
    pub definitions: Map<String, Value>,
    /// What a WebSocket client may say.
    pub client: Vec<String>,
    /// What it is told.
    pub server: Vec<String>,
    /// What is said of a job, on NATS too.
    pub job: Vec<String>,
    /// The requests that api answers: name and description.
    pub rpc: Vec<(&'static str, &'static str)>,
    prefix: String,
}

impl Schemas {
    /// Puts all schemas together; `settings` say in which dialect, and where definitions are found.
    pub fn collect(settings: &SchemaSettings) -> anyhow::Result<Self> {
        let mut written = settings.clone().for_serialize().into_generator();
        let mut read = settings.clone().for_deserialize().into_generator();
        let mut messages = Map::new();
        let mut named = |schemas: Vec<Schema>, generator: &mut SchemaGenerator| {
            let mut names = Vec::new();
            for mut schema in schemas {
                generator.transforms_mut().for_each(|transform| transform.transform(&mut schema));
                for (name, message) in messages_of(&schema)? {
                    messages.insert(name.clone(), message);
                    names.push(name);
                }
            }
            anyhow::Ok(names)
        };
        let server = stepcast_gateway::contract::server(&mut written);
        let server = named(server, &mut written)?;
        let job = Envelope::<JobMessage>::json_schema(&mut written);
        let job = named(vec![job], &mut written)?;
        let client = stepcast_gateway::contract::client(&mut read);
        let client = named(vec![client], &mut read)?;
        written.subschema_for::<BackendState>();
        written.subschema_for::<Problem>();
        let mut rpc = Vec::new();
        for endpoint in stepcast_api::contract::ENDPOINTS {
            rpc.push((endpoint.name, endpoint.description));
            let request = endpoint.request(&mut read);
            let answer = endpoint.answer(&mut written);
            messages.insert(format!("rpc.{}.request", endpoint.name), request.into());
            messages.insert(format!("rpc.{}.answer", endpoint.name), answer.into());
        }
        let prefix = format!("#{}/", settings.definitions_path);
        let mut schemas = Self { definitions: Map::new(), client, server, job, rpc, prefix };
        schemas.merge(written.take_definitions(true), read.take_definitions(true), messages)?;
        Ok(schemas)
    }

    /// A reference to a schema.
    pub fn reference(&self, name: &str) -> Value {
        debug_assert!(self.definitions.contains_key(name), "{name} has a schema");
        json!({"$ref": format!("{}{name}", self.prefix)})
    }

    /// The JSON Schema document.
    pub fn document(mut self) -> Value {
        for (name, members, description) in [
            ("ClientMessage", &self.client, "What a WebSocket client may say."),
            ("ServerMessage", &self.server, "What it is told. Types may be added; readers skip them."),
            ("JobMessage", &self.job, "What is said of a job, on NATS too."),
        ] {
            let members: Vec<Value> = members.iter().map(|name| self.reference(name)).collect();
            let union = json!({"title": name, "description": description, "oneOf": members});
            self.definitions.insert(name.to_owned(), union);
        }
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "urn:stepcast:v1",
            "title": "Messages of Stepcast",
            "description": "Every message is under $defs: one on the WebSocket or on a job's subject by its `type`, a request and its \
                answer as rpc.<name>.request and rpc.<name>.answer. Fields and messages are added, never renamed or \
                reused: readers skip what they do not know, and take words that they do not know for unknown.",
            "$defs": self.definitions,
        })
    }

    /// Of a type that is both written and read, and looks different, the read one is called `…Input`.
    fn merge(
        &mut self,
        written: Map<String, Value>,
        mut read: Map<String, Value>,
        mut messages: Map<String, Value>,
    ) -> anyhow::Result<()> {
        // What refers to something that differs, differs: so often is looked until nothing new is found.
        let mut renamed = BTreeSet::new();
        loop {
            let differs = |(name, schema): (&String, &Value)| {
                let differs = written.get(name).is_some_and(|other| other != schema);
                (differs && !renamed.contains(name)).then(|| name.clone())
            };
            let found: BTreeSet<String> = read.iter().filter_map(differs).collect();
            if found.is_empty() {
                break;
            }
            let is_read = |name: &str| self.client.iter().any(|it| it == name) || name.ends_with(".request");
            let asked = messages.iter_mut().filter(|(name, _)| is_read(name)).map(|(_, schema)| schema);
            for schema in read.values_mut().chain(asked) {
                rename(schema, &self.prefix, &found);
            }
            renamed.extend(found);
        }
        let input = |name: String| if renamed.contains(&name) { format!("{name}Input") } else { name };
        let read = read.into_iter().map(|(name, schema)| (input(name), schema));
        for (name, schema) in written.into_iter().chain(read).chain(messages) {
            let before = self.definitions.insert(name.clone(), schema.clone());
            ensure!(before.is_none_or(|before| before == schema), "two different schemas are called {name}");
        }
        Ok(())
    }
}

fn rename(schema: &mut Value, prefix: &str, names: &BTreeSet<String>) {
    let Ok(schema) = <&mut Schema>::try_from(schema) else { return };
    RecursiveTransform(|schema: &mut Schema| {
        let name = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix(prefix));
        if let Some(name) = name.filter(|name| names.contains(*name)) {
            let path = format!("{prefix}{name}Input");
            schema.insert("$ref".to_owned(), path.into());
        }
    })
    .transform(schema);
}

/// The messages of an enum, by their `type`, each with the fields that all of them have.
fn messages_of(schema: &Schema) -> anyhow::Result<Vec<(String, Value)>> {
    let schema = schema.as_object().context("a message is an object")?;
    let variants = schema.get("oneOf").and_then(Value::as_array).context("messages are told apart")?;
    variants.iter().map(|variant| message_of(schema, variant)).collect()
}

fn message_of(all: &Map<String, Value>, variant: &Value) -> anyhow::Result<(String, Value)> {
    let mut message = variant.as_object().context("a variant is an object")?.clone();
    let mut properties = Map::new();
    let mut required = Vec::new();
    for part in [variant.as_object(), Some(all)].into_iter().flatten() {
        properties.extend(part.get("properties").and_then(Value::as_object).cloned().unwrap_or_default());
        required.extend(part.get("required").and_then(Value::as_array).cloned().unwrap_or_default());
    }
    let name = properties["type"]["const"].as_str().context("a message has a type")?.to_owned();
    message.insert("title".to_owned(), name.as_str().into());
    message.insert("properties".to_owned(), properties.into());
    message.insert("required".to_owned(), required.into());
    Ok((name, message.into()))
}
