//! The contracts of `docs/contracts`, against which everything is held that a test hears.
//!
//! Held more strictly than by a reader: what a message has beyond its schema, and words that its schema does not know,
//! are violations here, since the schema would not have told of them.

mod http;
mod shortened;
mod strict;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use boon::{Compiler, Draft, SchemaIndex};
use serde_json::{Value, json};

pub use self::strict::strictly;

/// The documents, as committed.
pub const SCHEMAS: &str = include_str!("../../docs/contracts/schemas.json");
/// Of WebSocket and NATS.
pub const ASYNCAPI: &str = include_str!("../../docs/contracts/asyncapi.json");
/// Of HTTP.
pub const OPENAPI: &str = include_str!("../../docs/contracts/openapi.json");

/// What is said, and what it must look like.
static CONTRACT: LazyLock<Contract> = LazyLock::new(Contract::read);

/// The documents, and their schemas compiled.
pub struct Contract {
    /// The AsyncAPI document.
    pub asyncapi: Value,
    /// The OpenAPI document.
    pub openapi: Value,
    schemas: boon::Schemas,
    /// Where each is.
    places: HashMap<String, SchemaIndex>,
}

impl Contract {
    /// The contract of this build.
    pub fn get() -> &'static Self {
        &CONTRACT
    }

    fn read() -> Self {
        let parse = |text| serde_json::from_str::<Value>(text).expect("the committed documents are JSON");
        let (asyncapi, openapi) = (parse(ASYNCAPI), parse(OPENAPI));
        let definitions = strictly(parse(SCHEMAS)["$defs"].take());
        let names = |schemas: &Value, at: &str| -> Vec<String> {
            let names = schemas.as_object().into_iter().flat_map(serde_json::Map::keys);
            names.map(|name| format!("{at}/{name}")).collect()
        };
        let mut wanted = names(&definitions, "urn:schemas#/$defs");
        wanted.extend(names(&shortened::schemas(definitions.clone()), "urn:shortened#/$defs"));
        let components = names(&asyncapi["components"]["schemas"], "urn:asyncapi#/components/schemas");
        wanted.extend(components.into_iter().filter(|name| name.ends_with("Headers")));
        wanted.extend(http::answers(&openapi));
        let mut compiler = Compiler::new();
        compiler.enable_format_assertions();
        compiler.set_default_draft(Draft::V2020_12);
        for (url, document) in [
            ("urn:shortened", json!({"$defs": shortened::schemas(definitions.clone())})),
            ("urn:schemas", json!({"$defs": definitions})),
            ("urn:asyncapi", asyncapi.clone()),
            ("urn:openapi", openapi.clone()),
        ] {
            compiler.add_resource(url, document).expect("each has a name of its own");
        }
        let mut schemas = boon::Schemas::new();
        let mut compile = |place: String| match compiler.compile(&place, &mut schemas) {
            Ok(index) => (place, index),
            Err(error) => panic!("{place}: {error:#}"),
        };
        let places = wanted.into_iter().map(&mut compile).collect();
        Self { asyncapi, openapi, schemas, places }
    }

    /// Holds a value against the schema at this place; an error says what does not fit, and where.
    pub fn check_at(&self, place: &str, value: &Value) -> Result<(), String> {
        let index = self.places.get(place).ok_or_else(|| format!("there is no schema {place}"))?;
        self.schemas.validate(value, *index).map_err(|error| format!("{error:#}\nin {value}"))
    }

    /// Holds a value against one of the definitions, by its name.
    pub fn check(&self, name: &str, value: &Value) -> Result<(), String> {
        self.check_at(&format!("urn:schemas#/$defs/{name}"), value)
    }

    /// Holds an example against one of the definitions that leaves fields out, and puts `…` in place of values.
    pub fn check_shortened(&self, name: &str, value: &Value) -> Result<(), String> {
        self.check_at(&format!("urn:shortened#/$defs/{name}"), &shortened::what_is_said(value))
    }

    /// Holds a message with a `type` against the schema of that type.
    pub fn check_message(&self, message: &Value) -> Result<(), String> {
        let name = message["type"].as_str().ok_or_else(|| format!("a message without a type: {message}"))?;
        self.check(name, message)
    }
}

/// What was found to violate the contract. Its owner fails the test with it when it is dropped, at the latest.
#[derive(Debug, Default)]
pub struct Verdict(Violations);

/// Where violations are told, from any task.
#[derive(Clone, Debug, Default)]
pub struct Violations(Arc<Mutex<Vec<String>>>);

impl Violations {
    /// Takes note of what was wrong, if anything was.
    pub fn note(&self, outcome: Result<(), String>) {
        if let Err(error) = outcome {
            self.0.lock().expect("no code panics while it holds this lock").push(error);
        }
    }
}

impl Verdict {
    /// For the task that hears.
    pub fn violations(&self) -> Violations {
        self.0.clone()
    }

    /// Everything so far, which then fails nothing any more.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.0.lock().expect("no code panics while it holds this lock"))
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        let found = self.take();
        let first = found.first().map_or("", String::as_str);
        assert!(
            found.is_empty() || std::thread::panicking(),
            "{} messages violate docs/contracts, the first of them:\n{first}",
            found.len()
        );
    }
}
