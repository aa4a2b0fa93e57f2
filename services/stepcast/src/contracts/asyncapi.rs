//! The AsyncAPI document: where each message is said, and by whom.

use serde_json::{Map, Value, json};

use super::schemas::Schemas;

const LIFECYCLE: [&str; 6] = ["queued", "started", "retrying", "completed", "failed", "cancelled"];
/// What is recorded of a job.
const RECORDED: [&str; 4] =
    ["generation_queued", "generation_started", "generation_retrying", "generation_complete"];

/// The document, with these schemas.
pub fn document(schemas: Schemas) -> Value {
    let mut book = Book { schemas, channels: Map::new(), operations: Map::new() };
    book.websocket();
    book.server_sent_events();
    book.jobs();
    book.hints();
    book.requests();
    let mut definitions = book.schemas.definitions;
    definitions.extend(headers());
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Stepcast",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "A durable job queue and live progress in front of SD.Next image-generation servers. HTTP \
                is described by /openapi.json.\n\nFields and messages are added, never renamed or reused: readers \
                skip what they do not know.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "origin": {
                "host": "localhost:8000",
                "protocol": "ws",
                "description": "The one origin that serves everything to clients.",
            },
            "events": {
                "host": "localhost:8000",
                "protocol": "http",
                "description": "The same origin, for server-sent events.",
            },
            "nats": {
                "host": "localhost:4222",
                "protocol": "nats",
                "description": "NATS 2.14 or later with JetStream. Other services log in as `reader`.",
            },
        },
        "channels": book.channels,
        "operations": book.operations,
        "components": {"schemas": definitions},
    })
}

struct Book {
    schemas: Schemas,
    channels: Map<String, Value>,
    operations: Map<String, Value>,
}

impl Book {
    fn websocket(&mut self) {
        let (client, server) = (self.schemas.client.clone(), self.schemas.server.clone());
        let messages: Map<String, Value> =
            client.iter().chain(&server).map(|name| (name.clone(), self.message(name, None))).collect();
        let channel = json!({
            "address": "/ws/progress",
            "title": "WebSocket",
            "description": "Text frames. `(attempt, seq)` grows within a job; a client keeps the greatest pair that \
                it has seen of each job and drops what does not go beyond it.",
            "servers": [{"$ref": "#/servers/origin"}],
            "messages": messages,
            "bindings": {"ws": {"method": "GET"}},
        });
        self.channels.insert("websocket".to_owned(), channel);
        self.operation("hearClient", "receive", "websocket", &client, "What a client says.");
        self.operation("tellClient", "send", "websocket", &server, "What a client is told.");
    }

    fn server_sent_events(&mut self) {
        let others = ["subscription_confirmed", "going_away", "stats", "backend_update", "backend_gone"]
            .map(str::to_owned);
        let told: Vec<String> = others.into_iter().chain(self.schemas.job.clone()).collect();
        let messages: Map<String, Value> =
            told.iter().map(|name| (name.clone(), self.message(name, None))).collect();
        let channel = json!({
            "address": "/sse/progress",
            "title": "Server-sent events",
            "description": "The same messages, each as the data of an event without a name. The id of an event goes \
                into `Last-Event-ID`, or the parameter `last_event_id`, of who comes back. `job_ids` (separated by \
                commas) says which jobs, `max_rate` how much progress a second.",
            "servers": [{"$ref": "#/servers/events"}],
            "messages": messages,
        });
        self.channels.insert("serverSentEvents".to_owned(), channel);
        self.operation("tellReader", "send", "serverSentEvents", &told, "What a reader is told.");
    }

    fn jobs(&mut self) {
        let recorded = RECORDED.map(str::to_owned);
        let kind = json!({"enum": LIFECYCLE, "description": "What happened; generation_complete is said on the last three."});
        let parameters = job_parameters(Some(kind));
        let with = |headers| -> Map<String, Value> {
            recorded.iter().map(|name| (name.clone(), self.message(name, Some(headers)))).collect()
        };
        let (of_events, of_jobs) = (with("EventHeaders"), with("RecordedHeaders"));
        self.nats(
            "recordedEvents",
            "stepcast.v1.event.{owner}.{job_id}.{kind}",
            "Lifecycle events, to be recorded: the subject of the stream STEPCAST_EVENTS, which a durable consumer \
                reads. Of what is published here the stream may refuse some, so nobody listens to it live.",
            of_events,
            parameters.clone(),
        );
        self.nats(
            "jobs",
            "stepcast.v1.job.{owner}.{job_id}.{kind}",
            "Lifecycle events as recorded, republished by the stream: the one to subscribe to.",
            of_jobs,
            parameters,
        );
        let progress = "progress_update".to_owned();
        let live = (progress.clone(), self.message(&progress, Some("ProgressHeaders")));
        self.nats(
            "progress",
            "stepcast.v1.job.{owner}.{job_id}.progress",
            "Live progress, repeated at least once a second. Never recorded.",
            Map::from_iter([live]),
            job_parameters(None),
        );
        let state = ("BackendState".to_owned(), self.message("BackendState", None));
        self.nats(
            "backends",
            "stepcast.v1.backend.{backend_id}",
            "The state of a backend; the stream STEPCAST_BACKENDS keeps the last of each for 30 s.",
            Map::from_iter([state]),
            json!({"backend_id": {"description": "Which backend."}}),
        );
        self.operation("recordEvent", "send", "recordedEvents", &recorded, "To be recorded.");
        self.operation("tellOfJob", "send", "jobs", &recorded, "Recorded.");
        self.operation("tellProgress", "send", "progress", &[progress], "Live.");
        self.operation(
            "tellOfBackend",
            "send",
            "backends",
            &["BackendState".to_owned()],
            "How a backend is.",
        );
    }

    /// What services say to each other to be quick; nothing rests on it.
    fn hints(&mut self) {
        let empty =
            json!({"title": "Nothing", "summary": "The subject says it.", "contentType": "text/plain"});
        let cancel = json!({"title": "The word cancel", "contentType": "text/plain", "payload": {"type": "string", "const": "cancel"}});
        self.nats(
            "wake",
            "stepcast.v1.wake.{pool}",
            "Work exists for this pool. Between our own services; may get lost.",
            Map::from_iter([("wake".to_owned(), empty)]),
            json!({"pool": {"description": "Which pool."}}),
        );
        self.nats(
            "control",
            "stepcast.v1.control.{job_id}",
            "The fast path of a cancel. Between our own services; may get lost.",
            Map::from_iter([("control".to_owned(), cancel)]),
            json!({"job_id": {"description": "Which job."}}),
        );
        let copy = json!({"title": "A copy", "summary": "What could not be read, as it came.", "contentType": "application/octet-stream"});
        self.nats(
            "dead",
            "stepcast.v1.dead.stepcast.v1.event.{owner}.{job_id}.{kind}",
            "Copies of events that cannot be read; the stream STEPCAST_DEAD keeps them for 7 days.",
            Map::from_iter([("copy".to_owned(), copy)]),
            job_parameters(Some(json!({"description": "What it was said to be."}))),
        );
        self.operation("putAside", "send", "dead", &["copy".to_owned()], "Puts an event aside.");
        self.operation("wakePollers", "send", "wake", &["wake".to_owned()], "Tells idle backends of work.");
        self.operation("cancelAtOnce", "send", "control", &["control".to_owned()], "Tells a job's poller.");
    }

    fn requests(&mut self) {
        for (name, description) in self.schemas.rpc.clone() {
            let (request, answer) = (format!("rpc.{name}.request"), format!("rpc.{name}.answer"));
            let (asked, replied) = (format!("rpc.{name}"), format!("rpc.{name}.reply"));
            let question = (request.clone(), self.message(&request, None));
            self.nats(
                &asked,
                &format!("stepcast.v1.rpc.{name}"),
                description,
                Map::from_iter([question]),
                json!({}),
            );
            let mut refusal = self.message("Problem", Some("RefusalHeaders"));
            refusal["title"] = "A refusal".into();
            let replies = [(answer.clone(), self.message(&answer, None)), ("refusal".to_owned(), refusal)];
            let reply = json!({
                "address": null,
                "title": format!("Answers of {name}"),
                "description": "The inbox that the request names.",
                "servers": [{"$ref": "#/servers/nats"}],
                "messages": Map::from_iter(replies),
            });
            self.channels.insert(replied.clone(), reply);
            self.operation(
                &format!("answer.{name}"),
                "receive",
                &asked,
                std::slice::from_ref(&request),
                description,
            );
            let messages = [&answer, "refusal"].map(|message| message_of(&replied, message));
            self.operations[&format!("answer.{name}")]["reply"] =
                json!({"channel": {"$ref": format!("#/channels/{replied}")}, "messages": messages});
        }
    }

    fn nats(
        &mut self,
        name: &str,
        address: &str,
        description: &str,
        messages: Map<String, Value>,
        parameters: Value,
    ) {
        let mut channel = json!({
            "address": address,
            "description": description,
            "servers": [{"$ref": "#/servers/nats"}],
        });
        channel["messages"] = messages.into();
        if parameters.as_object().is_some_and(|parameters| !parameters.is_empty()) {
            channel["parameters"] = parameters;
        }
        self.channels.insert(name.to_owned(), channel);
    }

    fn message(&self, schema: &str, headers: Option<&str>) -> Value {
        let description = self.schemas.definitions[schema]["description"].as_str().unwrap_or(schema);
        let mut message = json!({
            "name": schema,
            "title": schema,
            "summary": description,
            "contentType": "application/json",
            "payload": self.schemas.reference(schema),
        });
        if let Some(headers) = headers {
            message["headers"] = json!({"$ref": format!("#/components/schemas/{headers}")});
        }
        message
    }

    fn operation(&mut self, name: &str, action: &str, channel: &str, messages: &[String], summary: &str) {
        let messages: Vec<Value> = messages.iter().map(|message| message_of(channel, message)).collect();
        let operation = json!({
            "action": action,
            "channel": {"$ref": format!("#/channels/{channel}")},
            "summary": summary,
            "messages": messages,
        });
        self.operations.insert(name.to_owned(), operation);
    }
}

fn message_of(channel: &str, message: &str) -> Value {
    json!({"$ref": format!("#/channels/{channel}/messages/{message}")})
}

fn job_parameters(kind: Option<Value>) -> Value {
    let mut parameters = json!({
        "owner": {"description": "Whose job: 1 to 64 of a-z, 0-9, _ and -; default while there is no log-in."},
        "job_id": {"description": "Which job: a UUID with hyphens."},
    });
    if let Some(kind) = kind {
        parameters["kind"] = kind;
    }
    parameters
}

/// The headers of NATS messages, which no type of ours holds.
fn headers() -> Map<String, Value> {
    let place = json!({
        "type": "string",
        "pattern": "^[0-9]+\\.[0-9]+$",
        "description": "<attempt>.<seq>, the message's place in its job.",
    });
    let json = json!({"const": "application/json"});
    let id = json!({"type": "string", "description": "<job_id>:<attempt>:<kind>: the same for each delivery of an event."});
    let of = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required});
    let event = json!({
        "Stepcast-Seq": place,
        "Nats-Msg-Id": id,
        "Stepcast-Author": {"type": "string", "description": "The claim's token, or the id of the outbox row."},
        "Nats-Expected-Last-Subject-Sequence": {"type": "string", "pattern": "^[0-9]+$"},
        "Nats-Expected-Last-Subject-Sequence-Subject": {"type": "string"},
        "Content-Type": json,
    });
    let mut recorded = event.clone();
    for (name, description) in [
        ("Nats-Stream", "The stream."),
        ("Nats-Subject", "The subject under which it is recorded."),
        ("Nats-Sequence", "Its place in the stream."),
        ("Nats-Time-Stamp", "When it was recorded."),
    ] {
        recorded[name] = json!({"type": "string", "description": description});
    }
    let refusal = json!({
        "Nats-Service-Error-Code": {"type": "string", "description": "The status of the problem."},
        "Nats-Service-Error": {"type": "string", "description": "Its title."},
    });
    Map::from_iter([
        ("EventHeaders".to_owned(), of(event, &["Stepcast-Seq", "Nats-Msg-Id"])),
        ("RecordedHeaders".to_owned(), of(recorded, &["Stepcast-Seq", "Nats-Msg-Id", "Nats-Sequence"])),
        (
            "ProgressHeaders".to_owned(),
            of(json!({"Stepcast-Seq": place, "Content-Type": json}), &["Stepcast-Seq"]),
        ),
        ("RefusalHeaders".to_owned(), of(refusal, &["Nats-Service-Error-Code", "Nats-Service-Error"])),
    ])
}

#[cfg(test)]
mod tests {
    use schemars::generate::SchemaSettings;
    use stepcast_shared::ids::{BackendId, JobId, Owner, Pool};
    use stepcast_shared::subjects::{self, Kind};

    use super::*;

    #[test]
    fn the_addresses_are_those_of_the_subjects() {
        let (owner, id, pool): (Owner, JobId, Pool) = (Owner::anonymous(), JobId::mint(), Pool::default());
        let backend: BackendId = "gpu-0".parse().unwrap();
        let channels = document(Schemas::collect(&SchemaSettings::draft07()).unwrap())["channels"].take();
        for (channel, subject) in [
            ("recordedEvents", subjects::event(&owner, id, Kind::Failed)),
            ("jobs", subjects::job(&owner, id, Kind::Failed)),
            ("progress", subjects::job(&owner, id, Kind::Progress)),
            ("backends", subjects::backend(&backend)),
            ("wake", subjects::wake(&pool)),
            ("control", subjects::control(id)),
            ("rpc.get", subjects::rpc("get")),
        ] {
            let address = channels[channel]["address"].as_str().unwrap();
            let address = address.replace("{owner}", owner.as_str()).replace("{job_id}", &id.to_string());
            let address = address.replace("{backend_id}", backend.as_str()).replace("{pool}", pool.as_str());
            assert_eq!(address.replace("{kind}", "failed"), subject);
        }
    }
}
