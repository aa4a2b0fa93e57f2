//! What the gateway itself says; everything else is passed on as it came.

use std::collections::BTreeSet;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use stepcast_shared::ids::{ConnectionId, JobId};
use stepcast_shared::messages::Envelope;
use stepcast_shared::problem::{FieldError, Problem};
use stepcast_shared::rpc::{self, Accepted, CancelOutcome, RetryOutcome};

use crate::protocol::{Code, Jobs, Rejection};
use crate::topics::Topic;
use crate::ws::Wire;

/// Version of the conversation.
const PROTOCOL: u32 = 1;

/// A message of the gateway's own making.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
pub enum Answer {
    /// The first message of a connection.
    Connected {
        /// For logs on both sides.
        connection_id: ConnectionId,
        /// For a person.
        message: &'static str,
        /// Version of the conversation.
        protocol: u32,
        /// How often the server pings.
        heartbeat_seconds: u64,
    },
    /// What is watched now.
    SubscriptionConfirmed(Confirmation),
    /// Somebody is there.
    Pong {
        /// The mark of the question.
        request_id: Option<String>,
    },
    /// Jobs were accepted.
    Submitted {
        /// In the order they were sent.
        jobs: Vec<Accepted>,
        /// The mark of the question.
        request_id: Option<String>,
    },
    /// What became of each retry.
    RetryResult {
        /// In the order they were named.
        jobs: Vec<RetryOutcome>,
        /// The mark of the question.
        request_id: Option<String>,
    },
    /// What became of each cancel.
    CancelResult {
        /// In the order they were named.
        jobs: Vec<CancelOutcome>,
        /// The mark of the question.
        request_id: Option<String>,
    },
    /// Something was not done.
    Error(Refusal),
    /// This gateway stops.
    GoingAway {
        /// When to come back.
        reconnect_after_ms: u64,
    },
}

/// `subscription_confirmed`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
pub struct Confirmation {
    /// The jobs; null for all of this owner.
    pub job_ids: Option<Vec<JobId>>,
    /// Those of them that nobody knows yet.
    pub unknown: Vec<JobId>,
    /// `none`, until there are previews.
    pub previews: Previews,
    /// Answers a `since`: whether nothing is missing.
    pub recovered: Option<bool>,
    /// Whether progress of all jobs comes many in one message.
    pub batch: bool,
    /// Whether there are more active jobs than the snapshot shows.
    pub truncated: bool,
    /// What is watched beside jobs.
    pub topics: BTreeSet<Topic>,
    /// The mark of the question.
    pub request_id: Option<String>,
}

/// How previews are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(transform = stepcast_shared::schema::open)]
pub enum Previews {
    /// Not at all.
    #[default]
    None,
}

/// `error`.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct Refusal {
    /// For the client's program.
    pub code: Code,
    /// For its author.
    pub message: String,
    /// The mark of what was refused.
    pub request_id: Option<String>,
    /// What is wrong with a job, field by field.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Seconds after which to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u64>,
}

impl Answer {
    /// The greeting.
    pub fn connected(connection_id: ConnectionId, heartbeat: Duration) -> Self {
        Self::Connected {
            connection_id,
            message: "Connected to Stepcast; subscribe to jobs to watch them",
            protocol: PROTOCOL,
            heartbeat_seconds: heartbeat.as_secs().max(1),
        }
    }

    /// An error, counted.
    pub fn error(code: Code, message: impl Into<String>, request_id: Option<String>) -> Self {
        Refusal::new(code, message, request_id).into()
    }

    /// The announcement of a goodbye.
    pub fn going_away(reconnect_after: Duration) -> Self {
        Self::GoingAway { reconnect_after_ms: u64::try_from(reconnect_after.as_millis()).unwrap_or(u64::MAX) }
    }

    /// The wire form, stamped now.
    pub fn encode(self) -> Wire {
        let json = Envelope::now(self).to_json();
        Wire::text(std::str::from_utf8(&json).expect("JSON is UTF-8"))
    }
}

impl Confirmation {
    /// Confirms these jobs and topics.
    pub fn of(jobs: &Jobs, topics: &BTreeSet<Topic>, request_id: Option<String>) -> Self {
        let job_ids = match jobs {
            Jobs::All => None,
            Jobs::Ids(ids) => Some(ids.clone()),
        };
        Self { job_ids, topics: topics.clone(), request_id, ..Self::default() }
    }
}

impl Refusal {
    fn new(code: Code, message: impl Into<String>, request_id: Option<String>) -> Self {
        metrics::counter!("stepcast_gateway_errors_total", "code" => code.as_str()).increment(1);
        Self { code, message: message.into(), request_id, errors: Vec::new(), retry_after: None }
    }

    /// What another service's refusal, or silence, means to a client.
    pub fn of_call(error: rpc::Error, request_id: Option<String>) -> Self {
        match error {
            rpc::Error::Unavailable(_) => Self::new(
                Code::Unavailable,
                "no answer came, so it is not known whether this was done: look before you try again",
                request_id,
            ),
            rpc::Error::Undecodable(_) => {
                Self::new(Code::Internal, "the answer could not be understood", request_id)
            }
            rpc::Error::Refused(problem) => Self::of_problem(*problem, request_id),
        }
    }

    fn of_problem(problem: Problem, request_id: Option<String>) -> Self {
        let code = match problem.status {
            401 | 403 => Code::Forbidden,
            429 => Code::RateLimited,
            400..500 => Code::InvalidJob,
            503 => Code::Unavailable,
            _ => Code::Internal,
        };
        Self {
            errors: problem.errors,
            retry_after: problem.retry_after,
            ..Self::new(code, problem.detail, request_id)
        }
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Error(refusal)
    }
}

impl From<Rejection> for Answer {
    fn from(Rejection { code, message, request_id }: Rejection) -> Self {
        Self::error(code, message, request_id)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn body(answer: Answer) -> Value {
        let mut value: Value = serde_json::from_slice(answer.encode().payload()).unwrap();
        assert!(value.as_object_mut().unwrap().remove("timestamp").unwrap().is_string());
        value
    }

    #[test]
    fn answers_have_the_shape_that_clients_know() {
        insta::assert_snapshot!(
            body(Answer::SubscriptionConfirmed(Confirmation::of(&Jobs::All, &BTreeSet::new(), None))),
            @r#"{"data":{"batch":false,"job_ids":null,"previews":"none","recovered":null,"request_id":null,"topics":[],"truncated":false,"unknown":[]},"type":"subscription_confirmed"}"#
        );
        insta::assert_snapshot!(
            body(Answer::Pong { request_id: Some("r".to_owned()) }),
            @r#"{"data":{"request_id":"r"},"type":"pong"}"#
        );
        insta::assert_snapshot!(
            body(Answer::error(Code::UnknownType, "what?", None)),
            @r#"{"data":{"code":"unknown_type","message":"what?","request_id":null},"type":"error"}"#
        );
        insta::assert_snapshot!(
            body(Answer::GoingAway { reconnect_after_ms: 1730 }),
            @r#"{"data":{"reconnect_after_ms":1730},"type":"going_away"}"#
        );
        let greeting = body(Answer::connected(ConnectionId::mint(), Duration::from_secs(25)));
        assert_eq!(greeting["data"]["protocol"], 1);
        assert_eq!(greeting["data"]["heartbeat_seconds"], 25);
    }

    #[test]
    fn a_problem_keeps_its_field_errors() {
        let problem = Problem::new(422, "invalid-job", "Invalid job")
            .detail("steps is 0")
            .errors(vec![FieldError::new("/steps", "must be at least 1")]);
        let refusal = Refusal::of_call(rpc::Error::Refused(Box::new(problem)), Some("r".to_owned()));
        insta::assert_snapshot!(
            body(refusal.into()),
            @r#"{"data":{"code":"invalid_job","errors":[{"detail":"must be at least 1","pointer":"/steps"}],"message":"steps is 0","request_id":"r"},"type":"error"}"#
        );
    }
}
