//! What a client may say, read strictly and refused in words that help.
//!
//! Fields are read one by one rather than derived: the errors are for people, and a field that a newer client adds is
//! skipped. A field that is known and wrong is an error, never a guess.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};
use stepcast_shared::ids::JobId;

use crate::topics::Topic;

/// Longest `request_id`, in characters.
pub const MAX_REQUEST_ID: usize = 64;
/// Highest `max_rate` that means anything.
pub const MAX_RATE: f64 = 1_000.0;

/// A message, and the mark by which its answer is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Incoming {
    /// The client's own mark.
    pub request_id: Option<String>,
    /// What it says.
    pub message: ClientMessage,
}

/// What a client says.
#[derive(Clone, Debug, PartialEq)]
pub enum ClientMessage {
    /// Watch jobs.
    Subscribe(Subscribe),
    /// Stop watching.
    Unsubscribe(Jobs, BTreeSet<Topic>),
    /// Is anybody there?
    Ping,
    /// Accept jobs; the bodies are checked by api.
    Submit(Vec<Value>),
    /// End jobs.
    Cancel(Vec<JobId>),
    /// Submit the requests of these jobs again.
    Retry(Vec<JobId>),
}

/// A wish to watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe {
    /// Which jobs.
    pub jobs: Jobs,
    /// What beside jobs.
    pub topics: BTreeSet<Topic>,
    /// When the client last heard something.
    pub since: Option<DateTime<Utc>>,
    /// Whether progress of all jobs may come many in one message.
    pub batch: bool,
    /// At most so many progress updates a second and job.
    pub max_rate: Option<f64>,
}

/// Which jobs are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Jobs {
    /// All of this owner.
    All,
    /// These, each once.
    Ids(Vec<JobId>),
}

/// The word that tells a client's program what was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = stepcast_shared::schema::open)]
pub enum Code {
    /// Not JSON.
    InvalidJson,
    /// JSON that means nothing here.
    InvalidMessage,
    /// A `type` that is not known.
    UnknownType,
    /// More jobs than one connection may watch.
    TooManySubscriptions,
    /// Too much at once.
    RateLimited,
    /// Not this client's.
    Forbidden,
    /// A job's body that api refused.
    InvalidJob,
    /// The service that would answer is away.
    Unavailable,
    /// Our own fault.
    Internal,
}

impl Code {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidMessage => "invalid_message",
            Self::UnknownType => "unknown_type",
            Self::TooManySubscriptions => "too_many_subscriptions",
            Self::RateLimited => "rate_limited",
            Self::Forbidden => "forbidden",
            Self::InvalidJob => "invalid_job",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a message was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// For the client's program.
    pub code: Code,
    /// For its author.
    pub message: String,
    /// The message's own mark, if it could be read.
    pub request_id: Option<String>,
}

/// Reads one text frame.
pub fn parse(text: &str) -> Result<Incoming, Rejection> {
    let rejection = |code, message: String| Rejection { code, message, request_id: None };
    let value: Value = serde_json::from_str(text)
        .map_err(|error| rejection(Code::InvalidJson, format!("this is not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(rejection(Code::InvalidMessage, "a message must be a JSON object".to_owned()));
    };
    let request_id = request_id(&fields).map_err(|message| rejection(Code::InvalidMessage, message))?;
    match message(fields) {
        Ok(message) => Ok(Incoming { request_id, message }),
        Err((code, message)) => Err(Rejection { code, message, request_id }),
    }
}

fn request_id(fields: &Map<String, Value>) -> Result<Option<String>, String> {
    match fields.get("request_id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) if id.chars().count() <= MAX_REQUEST_ID => Ok(Some(id.clone())),
        Some(Value::String(_)) => Err(format!("`request_id` may have at most {MAX_REQUEST_ID} characters")),
        Some(_) => Err("`request_id` must be a string".to_owned()),
    }
}

type Parsed<T> = Result<T, (Code, String)>;

fn invalid<T>(message: impl Into<String>) -> Parsed<T> {
    Err((Code::InvalidMessage, message.into()))
}

fn message(mut fields: Map<String, Value>) -> Parsed<ClientMessage> {
    let kind = match fields.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        Some(_) => return invalid("`type` must be a string"),
        None => {
            return invalid("`type` is missing: one of subscribe, unsubscribe, ping, submit, cancel, retry");
        }
    };
    match kind.as_str() {
        "subscribe" => subscribe(&fields).map(ClientMessage::Subscribe),
        "unsubscribe" => unsubscribe(&fields),
        "ping" => Ok(ClientMessage::Ping),
        "submit" => submit(&mut fields).map(ClientMessage::Submit),
        "cancel" => named(&fields, "cancel").map(ClientMessage::Cancel),
        "retry" => named(&fields, "retry").map(ClientMessage::Retry),
        other => Err((
            Code::UnknownType,
            format!(
                "`{}` is not a type known here: one of subscribe, unsubscribe, ping, submit, cancel, retry",
                shortened(other)
            ),
        )),
    }
}

/// The jobs of a message that does something to each of them.
fn named(fields: &Map<String, Value>, what: &str) -> Parsed<Vec<JobId>> {
    match jobs(fields)? {
        Jobs::Ids(ids) if !ids.is_empty() => Ok(ids),
        _ => invalid(format!("`job_ids` must name the jobs to {what}")),
    }
}

fn subscribe(fields: &Map<String, Value>) -> Parsed<Subscribe> {
    let (jobs, topics) = jobs_and_topics(fields)?;
    let topics = topics.unwrap_or_default();
    previews(fields)?;
    let batch = batch(fields, &jobs)?;
    Ok(Subscribe { jobs, topics, since: since(fields)?, batch, max_rate: max_rate(fields)? })
}

fn unsubscribe(fields: &Map<String, Value>) -> Parsed<ClientMessage> {
    let (jobs, topics) = jobs_and_topics(fields)?;
    let everything = jobs == Jobs::All && topics.is_none();
    let all = if everything { BTreeSet::from(Topic::ALL) } else { BTreeSet::new() };
    Ok(ClientMessage::Unsubscribe(jobs, topics.unwrap_or(all)))
}

/// Which jobs and which topics are meant; where only topics are named, no jobs are.
fn jobs_and_topics(fields: &Map<String, Value>) -> Parsed<(Jobs, Option<BTreeSet<Topic>>)> {
    let topics = topics(fields)?;
    let only_topics = topics.is_some() && !fields.contains_key("job_ids") && !fields.contains_key("job_id");
    Ok((if only_topics { Jobs::Ids(Vec::new()) } else { jobs(fields)? }, topics))
}

fn topics(fields: &Map<String, Value>) -> Parsed<Option<BTreeSet<Topic>>> {
    if absent(fields, "topics") {
        return Ok(None);
    }
    let Some(list) = fields["topics"].as_array() else {
        return invalid("`topics` must be a list of \"stats\" and \"backends\"");
    };
    let mut topics = BTreeSet::new();
    for entry in list {
        let Some(topic) = entry.as_str().and_then(Topic::named) else {
            let entry = shortened(&entry.to_string());
            return invalid(format!("`{entry}` in `topics` is not a topic: one of stats, backends"));
        };
        topics.insert(topic);
    }
    Ok(Some(topics))
}

fn batch(fields: &Map<String, Value>, jobs: &Jobs) -> Parsed<bool> {
    if absent(fields, "batch") {
        return Ok(false);
    }
    match (fields["batch"].as_bool(), jobs) {
        (Some(true), Jobs::Ids(_)) => invalid("`batch` goes with all jobs: leave `job_ids` out, or null"),
        (Some(batch), _) => Ok(batch),
        (None, _) => invalid("`batch` must be true or false"),
    }
}

fn jobs(fields: &Map<String, Value>) -> Parsed<Jobs> {
    let list = match fields.get("job_ids") {
        None if fields.contains_key("job_id") => {
            return invalid("`job_id` is not a field here: did you mean `job_ids`, a list?");
        }
        None | Some(Value::Null) => return Ok(Jobs::All),
        Some(Value::Array(list)) => list,
        Some(_) => return invalid("`job_ids` must be a list of ids, or null for all of your jobs"),
    };
    let mut seen = HashSet::with_capacity(list.len());
    let mut ids = Vec::with_capacity(list.len());
    for entry in list {
        let Value::String(text) = entry else {
            return invalid(format!("`{}` in `job_ids` is not a string", shortened(&entry.to_string())));
        };
        let Ok(id) = text.parse::<JobId>() else {
            return invalid(format!("`{}` in `job_ids` is not a job's id (a UUID)", shortened(text)));
        };
        if seen.insert(id) {
            ids.push(id);
        }
    }
    Ok(Jobs::Ids(ids))
}

/// Previews are accepted and confirmed as none, so only what could never be meant is refused.
fn previews(fields: &Map<String, Value>) -> Parsed<()> {
    if !absent(fields, "include_previews") && !fields["include_previews"].is_boolean() {
        return invalid("`include_previews` must be true or false");
    }
    if !absent(fields, "previews")
        && !matches!(fields["previews"].as_str(), Some("none" | "binary" | "base64"))
    {
        return invalid("`previews` must be \"none\", \"binary\" or \"base64\"");
    }
    for name in ["preview_max_edge", "preview_interval_ms"] {
        if !absent(fields, name) && fields[name].as_u64().is_none_or(|number| number == 0) {
            return invalid(format!("`{name}` must be a whole number above 0"));
        }
    }
    Ok(())
}

fn since(fields: &Map<String, Value>) -> Parsed<Option<DateTime<Utc>>> {
    if absent(fields, "since") {
        return Ok(None);
    }
    match fields["since"].as_str().and_then(|text| DateTime::parse_from_rfc3339(text).ok()) {
        Some(time) => Ok(Some(time.to_utc())),
        None => invalid("`since` must be the `timestamp` of an earlier message (RFC 3339)"),
    }
}

fn max_rate(fields: &Map<String, Value>) -> Parsed<Option<f64>> {
    if absent(fields, "max_rate") {
        return Ok(None);
    }
    match fields["max_rate"].as_f64() {
        Some(rate) if rate > 0.0 && rate <= MAX_RATE => Ok(Some(rate)),
        _ => invalid(format!("`max_rate` must be a number above 0 and up to {MAX_RATE}")),
    }
}

fn submit(fields: &mut Map<String, Value>) -> Parsed<Vec<Value>> {
    let jobs = match (fields.remove("job"), fields.remove("jobs")) {
        (Some(_), Some(_)) => return invalid("give `job` or `jobs`, not both"),
        (Some(job), None) => vec![job],
        (None, Some(Value::Array(jobs))) if !jobs.is_empty() => jobs,
        (None, Some(_)) => return invalid("`jobs` must be a list of at least one job"),
        (None, None) => {
            return invalid("`job` is missing: the same object that POST /generation/queue-generation takes");
        }
    };
    if jobs.iter().any(|job| !job.is_object()) {
        return invalid("a job must be an object");
    }
    Ok(jobs)
}

fn absent(fields: &Map<String, Value>, name: &str) -> bool {
    fields.get(name).is_none_or(Value::is_null)
}

/// What a client sent, short enough to be sent back.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
