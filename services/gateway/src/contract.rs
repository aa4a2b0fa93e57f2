//! The conversation as JSON Schema: what a client may say, and what it is told.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde_json::json;
use stepcast_shared::ids::{BackendId, JobId};
use stepcast_shared::job::JobRequest;
use stepcast_shared::messages::{BackendState, Envelope, JobMessage, ProgressUpdate, Stats, Timestamp};

use crate::answers::Answer;
use crate::topics::Topic;

/// The schema of a client's message. Ask for it with a generator of what is read.
pub fn client(generator: &mut SchemaGenerator) -> Schema {
    Incoming::json_schema(generator)
}

/// The schemas of a server's messages, one of each source. Ask for them with a generator of what is written.
pub fn server(generator: &mut SchemaGenerator) -> Vec<Schema> {
    vec![
        Envelope::<Answer>::json_schema(generator),
        Envelope::<JobMessage>::json_schema(generator),
        Envelope::<Joined>::json_schema(generator),
    ]
}

/// What `hub` joins of messages that nobody here has decoded.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used: the messages are joined of others byte for byte")]
enum Joined {
    /// Progress of many jobs, for who asked for `batch`.
    ProgressBatch {
        /// At most one of each job, and only of jobs that have changed since the last batch.
        messages: Vec<Envelope<Progress>>,
    },
    /// The topic `stats`: at once, and then every 2 s.
    Stats(Stats),
    /// The topic `backends`: the state of a backend, as its poller tells it.
    BackendUpdate(BackendState),
    /// The topic `backends`: one that was not heard of for 30 s.
    BackendGone {
        /// Which.
        id: BackendId,
    },
}

#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", content = "data")]
#[expect(dead_code, reason = "only its schema is used")]
enum Progress {
    /// How far it is.
    #[serde(rename = "progress_update")]
    Progress(ProgressUpdate),
}

/// A client's message, as [`crate::protocol`] reads it field by field. Fields that are not known are skipped.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used: the errors of a derived reader would help nobody")]
struct Incoming {
    #[serde(flatten)]
    message: Message,
    /// The client's own mark, which comes back with the answer.
    #[schemars(length(max = crate::protocol::MAX_REQUEST_ID))]
    request_id: Option<String>,
}

#[derive(JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum Message {
    /// Watch jobs. Answered by `subscription_confirmed`; where they stand follows, and then what is live.
    #[schemars(transform = job_ids_if_anything)]
    Subscribe(Subscribe),
    /// Stop watching jobs. Answered by `subscription_confirmed`.
    #[schemars(transform = job_ids_if_anything)]
    Unsubscribe {
        /// Which; all without it.
        job_ids: Option<Vec<JobId>>,
        /// What is watched beside jobs; with it, and without `job_ids`, no jobs are meant.
        topics: Option<Vec<Topic>>,
    },
    /// Is anybody there? Answered by `pong`.
    Ping {},
    /// Have jobs accepted, all or none, and watch them. Answered by `submitted`.
    #[schemars(transform = one_or_many)]
    Submit {
        /// One job.
        job: Box<JobRequest>,
        /// Several.
        #[schemars(length(min = 1))]
        jobs: Vec<JobRequest>,
    },
    /// Cancel jobs. Answered by `cancel_result`.
    Cancel {
        /// Which.
        #[schemars(length(min = 1))]
        job_ids: Vec<JobId>,
    },
    /// Submit the requests of jobs again, and watch the new ones. Answered by `retry_result`.
    Retry {
        /// Which.
        #[schemars(length(min = 1))]
        job_ids: Vec<JobId>,
    },
}

#[derive(JsonSchema)]
#[schemars(inline, transform = batches_are_of_all)]
#[expect(dead_code, reason = "only its schema is used")]
struct Subscribe {
    /// Which; all of this owner without it. They are added to what is watched.
    job_ids: Option<Vec<JobId>>,
    /// The `timestamp` of the last message about a job that was read: what was recorded after it is told first.
    since: Option<Timestamp>,
    /// At most so many progress updates a second of each of these jobs.
    #[schemars(extend("exclusiveMinimum" = 0, "maximum" = crate::protocol::MAX_RATE))]
    max_rate: Option<f64>,
    /// Whether progress of all jobs may come many in one message.
    batch: Option<bool>,
    /// What to watch beside jobs; with it, and without `job_ids`, no jobs are meant.
    topics: Option<Vec<Topic>>,
    /// Checked and accepted; there are no previews yet.
    include_previews: Option<bool>,
    /// Checked and accepted; there are no previews yet.
    previews: Option<Previews>,
    /// Checked and accepted; there are no previews yet.
    #[schemars(range(min = 1))]
    preview_max_edge: Option<u64>,
    /// Checked and accepted; there are no previews yet.
    #[schemars(range(min = 1))]
    preview_interval_ms: Option<u64>,
}

#[derive(JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "PreviewFormat")]
#[expect(dead_code, reason = "only its schema is used")]
enum Previews {
    /// None.
    None,
    /// As binary frames.
    Binary,
    /// In `preview_image`.
    Base64,
}

/// `job_id` alone is a slip of the pen, which would otherwise watch all jobs.
fn job_ids_if_anything(schema: &mut Schema) {
    let rule = json!([{"required": ["job_ids"]}, {"not": {"required": ["job_id"]}}]);
    schema.insert("anyOf".to_owned(), rule);
}

fn one_or_many(schema: &mut Schema) {
    schema.insert("required".to_owned(), json!(["type"]));
    schema.insert("oneOf".to_owned(), json!([{"required": ["job"]}, {"required": ["jobs"]}]));
}

fn batches_are_of_all(schema: &mut Schema) {
    schema.insert("if".to_owned(), json!({"properties": {"batch": {"const": true}}, "required": ["batch"]}));
    // Where only topics are named, no jobs are.
    let all = json!([{"required": ["job_ids"]}, {"properties": {"topics": {"type": "null"}}}]);
    schema.insert("then".to_owned(), json!({"properties": {"job_ids": {"type": "null"}}, "anyOf": all}));
}

#[cfg(test)]
mod tests;
