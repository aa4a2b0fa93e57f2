//! What one poll of `GET /sdapi/v1/progress` saw.
//!
//! The endpoint is read leniently: a field that is missing, null or of an odd type reads as its default, so a
//! newer or older server costs precision, never the job. What the fields are worth is for the tracker to judge.

use serde::Deserialize;
use serde_json::Value;

/// One poll: an answer, or none.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    /// The server answered.
    Seen(Observation),
    /// The server tells tasks apart, and answered about ours.
    Task(TaskSample),
    /// The poll failed or was refused (a 429 counts as this), so nothing is known about this moment.
    Missed,
}

/// What a server that tells tasks apart says of one.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskSample {
    /// Nothing: it has not arrived, or is forgotten.
    Unknown,
    /// It waits behind another's work.
    Queued,
    /// It runs.
    Active {
        /// The share of all its passes that is done, 0.0 to 1.0.
        fraction: f64,
        /// The server's state, where that is known to be the task's.
        state: Option<Observation>,
    },
    /// It has ended, well or not.
    Completed,
}

/// The server's state at the moment of a poll.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "Value")]
pub struct Observation {
    /// Id of the stage that runs, empty between stages; [`None`] where the server has no such field (A1111, Forge).
    pub id: Option<String>,
    /// Label of the stage that runs, empty between stages.
    pub job: String,
    /// The server's own progress of the stage, 0.0 to 1.0.
    pub progress: f64,
    /// The server's own estimate in seconds; 0 also when it has none.
    pub eta_relative: f64,
    /// Steps done of the sampling pass that runs.
    pub sampling_step: u32,
    /// Steps of the sampling pass that runs, 0 outside of one.
    pub sampling_steps: u32,
    /// Number of the batch that runs, from 0. SD.Next leaves it at 0, A1111 and Forge count.
    pub job_no: u32,
    /// Batches of the job. SD.Next says 1 or 0, A1111 and Forge the truth.
    pub job_count: u32,
    /// Somebody or something raised the interrupt flag; it lingers until the next stage begins.
    pub interrupted: bool,
    /// Somebody raised the skip flag; it lingers likewise.
    pub skipped: bool,
}

impl Sample {
    /// Reads the body of a 200. Anything that is not a JSON object counts as [`Sample::Missed`].
    pub fn from_body(body: &[u8]) -> Self {
        match serde_json::from_slice::<Value>(body) {
            Ok(value) if value.is_object() => Self::Seen(value.into()),
            _ => Self::Missed,
        }
    }
}

impl TaskSample {
    /// Reads an answer of `POST /internal/progress`, as leniently.
    pub fn from_value(body: &Value) -> Self {
        let flag = |name: &str| body[name].as_bool().unwrap_or_default();
        if flag("active") {
            Self::Active { fraction: fraction(&body["progress"]), state: None }
        } else if flag("queued") {
            Self::Queued
        } else if flag("completed") {
            Self::Completed
        } else {
            Self::Unknown
        }
    }
}

impl Observation {
    /// Whether the server shows work: a named stage. The reverse is no proof, since stages have gaps between them.
    pub fn is_active(&self) -> bool {
        !self.job.is_empty() || self.id.as_deref().is_some_and(|id| !id.is_empty())
    }
}

impl From<Value> for Observation {
    fn from(body: Value) -> Self {
        let state = &body["state"];
        let mut job = state["job"].as_str().unwrap_or_default();
        if job.is_empty() && state["job_count"].as_i64().is_some_and(|count| count < 0) {
            // A1111 and Forge begin a job with a count of -1, and some without a name; this is their own word for it.
            job = "(unknown)";
        }
        Self {
            id: body.get("id").map(|id| match id {
                Value::String(id) => id.clone(),
                Value::Number(id) if id.as_u64() != Some(0) => id.to_string(),
                // Before its first job the server says 0, which means no stage as the empty string does later.
                _ => String::new(),
            }),
            job: job.to_owned(),
            progress: fraction(&body["progress"]),
            eta_relative: seconds(&body["eta_relative"]),
            sampling_step: count(&state["sampling_step"]),
            sampling_steps: count(&state["sampling_steps"]),
            job_no: count(&state["job_no"]),
            job_count: count(&state["job_count"]),
            interrupted: state["interrupted"].as_bool().unwrap_or_default(),
            skipped: state["skipped"].as_bool().unwrap_or_default(),
        }
    }
}

fn fraction(value: &Value) -> f64 {
    value.as_f64().filter(|value| value.is_finite()).unwrap_or_default().clamp(0.0, 1.0)
}

fn seconds(value: &Value) -> f64 {
    value.as_f64().filter(|value| value.is_finite()).unwrap_or_default().max(0.0)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float-to-integer cast saturates"
)]
fn count(value: &Value) -> u32 {
    value.as_f64().unwrap_or_default() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(body: &str) -> Observation {
        match Sample::from_body(body.as_bytes()) {
            Sample::Seen(observation) => observation,
            other => panic!("read as {other:?}: {body}"),
        }
    }

    #[test]
    fn a_running_stage_is_read() {
        let seen = seen(
            r#"{"id":"2af5136440eb430","progress":0.03,"eta_relative":25.48,"state":{"skipped":false,"interrupted":true,
            "job":"Inference","job_count":1,"job_timestamp":"2026","job_no":0,"sampling_step":1,"sampling_steps":40},
            "current_image":null,"textinfo":null}"#,
        );
        assert_eq!(seen.id.as_deref(), Some("2af5136440eb430"));
        assert_eq!((seen.sampling_step, seen.sampling_steps), (1, 40));
        assert!(seen.interrupted && !seen.skipped && seen.is_active());
    }

    #[test]
    fn the_number_zero_is_no_id_and_no_field_is_another_matter() {
        assert_eq!(seen(r#"{"id":0}"#).id.as_deref(), Some(""));
        assert_eq!(seen(r#"{"id":null}"#).id.as_deref(), Some(""));
        assert_eq!(seen("{}").id, None);
        assert!(!seen(r#"{"id":0}"#).is_active());
    }

    #[test]
    fn a_job_that_has_begun_without_name_or_count_is_work() {
        assert!(seen(r#"{"state":{"job":null,"job_count":-1}}"#).is_active());
        assert!(!seen(r#"{"state":{"job":"","job_count":0}}"#).is_active());
    }

    #[test]
    fn a_task_is_what_the_server_says_it_is() {
        let read = |body: &str| TaskSample::from_value(&serde_json::from_str(body).expect("JSON"));
        assert_eq!(
            read(r#"{"active":true,"queued":false,"completed":false,"progress":0.25}"#),
            TaskSample::Active { fraction: 0.25, state: None }
        );
        assert_eq!(read(r#"{"active":false,"queued":true,"progress":null}"#), TaskSample::Queued);
        assert_eq!(read(r#"{"active":false,"completed":true}"#), TaskSample::Completed);
        assert_eq!(read("[]"), TaskSample::Unknown);
    }

    #[test]
    fn odd_values_read_as_defaults() {
        let odd =
            seen(r#"{"id":"x","progress":"much","eta_relative":null,"state":{"sampling_step":-3,"job":7}}"#);
        assert_eq!(odd, Observation { id: Some("x".to_owned()), ..Observation::default() });
        assert_eq!(seen(r#"{"state":[],"new":{}}"#), Observation::default());
    }

    #[test]
    fn what_is_not_an_object_is_a_missed_poll() {
        for body in ["", "null", "[]", "<html>", "{\"id\":"] {
            assert_eq!(Sample::from_body(body.as_bytes()), Sample::Missed, "{body}");
        }
    }
}
