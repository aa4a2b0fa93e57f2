//! What api answers, described for other programs: the endpoints of the micro service with the schemas of their
//! messages, and the OpenAPI document.

use std::collections::HashMap;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use stepcast_shared::messages::Stats;
use stepcast_shared::rpc::{
    self, ActiveAnswer, ActiveRequest, CancelAnswer, CancelRequest, ClaimAnswer, ClaimRequest,
    EndpointSchema, GetRequest, LastAnswer, LastRequest, ReleaseRequest, RenewRequest, Renewed, RetryAnswer,
    RetryRequest, SchemaAnswer, SchemaRequest, StatsRequest, SubmitAnswer, SubmitRequest,
};
use stepcast_shared::subjects;

use crate::view;

/// The description of WebSocket and NATS: `stepcast contracts` writes it, and a test compares.
pub const ASYNCAPI: &str = include_str!("../../../docs/contracts/asyncapi.json");

/// The OpenAPI document of everything that is served over HTTP.
pub fn openapi() -> utoipa::openapi::OpenApi {
    crate::routes::described().1
}

/// One request that the micro service answers.
#[derive(Debug)]
pub struct Endpoint {
    /// The last token of its subject.
    pub name: &'static str,
    /// What it is for, in a sentence.
    pub description: &'static str,
    request: fn(&mut SchemaGenerator) -> Schema,
    answer: fn(&mut SchemaGenerator) -> Schema,
}

/// Every endpoint: what is not in here is not served.
pub const ENDPOINTS: &[Endpoint] = &[
    Endpoint::new::<ClaimRequest, ClaimAnswer>(rpc::CLAIM, "An idle backend asks for work."),
    Endpoint::new::<RenewRequest, Renewed>(rpc::RENEW, "A poller says that it still runs its claims."),
    Endpoint::new::<ReleaseRequest, ()>(rpc::RELEASE, "A poller gives a claim back that it has not started."),
    Endpoint::new::<SubmitRequest, SubmitAnswer>(rpc::SUBMIT, "Accepts jobs, all or none."),
    Endpoint::new::<GetRequest, view::Job>(rpc::GET, "Where a job stands."),
    Endpoint::new::<ActiveRequest, ActiveAnswer>(rpc::ACTIVE, "An owner's jobs that wait or run."),
    Endpoint::new::<LastRequest, LastAnswer>(rpc::LAST, "The last recorded message of each of these jobs."),
    Endpoint::new::<CancelRequest, CancelAnswer>(rpc::CANCEL, "Cancels jobs."),
    Endpoint::new::<RetryRequest, RetryAnswer>(rpc::RETRY, "Submits jobs again."),
    Endpoint::new::<StatsRequest, Stats>(rpc::STATS, "How the installation does."),
    Endpoint::new::<SchemaRequest, SchemaAnswer>(
        rpc::SCHEMA,
        "The JSON Schemas of these requests and answers; also takes an empty message.",
    ),
];

impl Endpoint {
    const fn new<Q: JsonSchema, A: JsonSchema>(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            description,
            request: SchemaGenerator::subschema_for::<Q>,
            answer: SchemaGenerator::subschema_for::<A>,
        }
    }

    /// The schema of what is asked. Ask for it with a generator of what is read.
    pub fn request(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.request)(generator)
    }

    /// The schema of what is answered. Ask for it with a generator of what is written.
    pub fn answer(&self, generator: &mut SchemaGenerator) -> Schema {
        (self.answer)(generator)
    }

    /// What who discovers the service is told of it. The schemas are too large to be said to each who looks.
    pub fn metadata(&self) -> HashMap<String, String> {
        let schema = format!("{} {{\"name\":\"{}\"}}", subjects::rpc(rpc::SCHEMA), self.name);
        let entries = [("description", self.description.to_owned()), ("schema", schema)];
        entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    fn described(&self) -> EndpointSchema {
        let read = SchemaSettings::draft2020_12().for_deserialize();
        let written = SchemaSettings::draft2020_12().for_serialize();
        EndpointSchema {
            name: self.name.to_owned(),
            subject: subjects::rpc(self.name),
            description: self.description.to_owned(),
            request: whole(read, self.request),
            answer: whole(written, self.answer),
        }
    }
}

/// The schemas of one endpoint, or of all; `None` if there is no such endpoint.
pub fn schemas(request: &SchemaRequest) -> Option<SchemaAnswer> {
    let wanted = |endpoint: &&Endpoint| request.name.as_deref().is_none_or(|name| name == endpoint.name);
    let endpoints: Vec<_> = ENDPOINTS.iter().filter(wanted).map(Endpoint::described).collect();
    (!endpoints.is_empty()).then_some(SchemaAnswer { endpoints })
}

/// A schema that refers to nothing outside itself.
fn whole(settings: SchemaSettings, of: fn(&mut SchemaGenerator) -> Schema) -> serde_json::Value {
    let dialect = settings.meta_schema.clone();
    let mut generator = settings.into_generator();
    let mut schema = of(&mut generator);
    if let Some(dialect) = dialect {
        schema.insert("$schema".to_owned(), dialect.into());
    }
    schema.insert("$defs".to_owned(), generator.take_definitions(true).into());
    schema.into()
}
