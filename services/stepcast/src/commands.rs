//! The commands that ask once and show the answer.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use stepcast_shared::ids::JobId;
use stepcast_shared::messages::{Status, Timestamp};

use crate::cli;
use crate::client::{Client, Error};
use crate::exit::Exit;
use crate::table::{Table, shortened};
use crate::{client, out};

/// A job, as far as it is shown. Whatever a newer server adds is skipped.
#[derive(Debug, Deserialize)]
struct Job {
    job_id: JobId,
    status: Status,
    progress: f64,
    backend: Option<String>,
    label: Option<String>,
    params: Value,
    created_at: Timestamp,
    total_duration: Option<f64>,
    stopped_after_seconds: Option<f64>,
    position: Option<i64>,
    waiting_for: Option<String>,
    estimated_wait_seconds: Option<f64>,
    #[serde(default)]
    cancelling: bool,
    #[serde(default)]
    images: Vec<String>,
    error_message: Option<String>,
    eta_seconds: Option<f64>,
}

/// `jobs`.
pub async fn jobs(args: &cli::Jobs, json: bool) -> anyhow::Result<Exit> {
    #[derive(Deserialize)]
    struct List {
        jobs: Vec<Job>,
    }
    let client = Client::new(&args.server.server)?;
    let mut url = client.url(if args.active { "generation/jobs/active" } else { "generation/jobs" });
    if !args.active {
        let mut query = url.query_pairs_mut();
        query.append_pair("limit", &args.limit.to_string());
        if let Some(status) = args.status {
            query.append_pair("status", status.as_str());
        }
        if let Some(label) = &args.label {
            query.append_pair("label", label);
        }
    }
    if json {
        return show(&client.get(url).await?);
    }
    let list: List = client.get(url).await?;
    let mut table = Table::new(&["JOB", "STATE", "AGE", "TOOK", "BACKEND", "LABEL", "PROMPT"]);
    let now = Utc::now();
    for job in &list.jobs {
        table.row(vec![
            job.job_id.to_string(),
            state(job),
            age(job.created_at, now),
            job.total_duration.map(|seconds| format!("{seconds:.1} s")).unwrap_or_default(),
            job.backend.clone().unwrap_or_default(),
            shortened(job.label.as_deref().unwrap_or_default(), 20),
            shortened(job.params["prompt"].as_str().unwrap_or_default(), 40),
        ]);
    }
    out::line(&if table.is_empty() { "no jobs".to_owned() } else { table.text() })?;
    Ok(Exit::Done)
}

/// `get`.
pub async fn get(args: &cli::Get, json: bool) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server.server)?;
    let url = client.url(&format!("generation/jobs/{}", args.job));
    if json {
        return show(&client.get(url).await?);
    }
    let job: Job = client.get(url).await?;
    let mut text = format!("{}\n", job.job_id);
    let mut row = |name: &str, value: String| {
        let _ = writeln!(text, "  {name:<8} {value}");
    };
    row("state", state(&job));
    if let Some(seconds) = job.eta_seconds {
        row("left", format!("{seconds:.0} s"));
    }
    row("created", job.created_at.to_string());
    if let Some(seconds) = job.total_duration {
        row("took", format!("{seconds:.1} s"));
    }
    if let Some(seconds) = job.stopped_after_seconds {
        row("stopped", format!("{seconds:.1} s after that was asked for"));
    }
    for (name, value) in [("backend", &job.backend), ("label", &job.label), ("error", &job.error_message)] {
        if let Some(value) = value {
            row(name, shortened(value, 2_000));
        }
    }
    row("prompt", shortened(job.params["prompt"].as_str().unwrap_or_default(), 2_000));
    for image in &job.images {
        row("image", client.url(image).to_string());
    }
    out::line(text.trim_end())?;
    Ok(Exit::Done)
}

/// `cancel`: each job by itself, so that one which has ended does not keep the others alive.
pub async fn cancel(args: &cli::Cancel, json: bool) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server.server)?;
    let mut exit = Exit::Done;
    for job in &args.jobs {
        let url = client.url(&format!("generation/jobs/{job}/cancel"));
        match client.post::<Value>(url, None, None).await {
            Ok(answer) if json => out::json(&with_id(*job, answer))?,
            Ok(answer) => {
                let words = answer["message"].as_str().unwrap_or("cancelled");
                out::line(&format!("{job} {}", shortened(words, 200)))?;
            }
            Err(error @ Error::Refused(_)) => {
                exit = Exit::Failed;
                if json {
                    out::json(&with_id(*job, client::error_json(&error.into())))?;
                } else {
                    out::line(&format!("{job} not cancelled: {error}"))?;
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(exit)
}

/// Prints an answer as it came.
pub fn show(answer: &Value) -> anyhow::Result<Exit> {
    out::json(answer)?;
    Ok(Exit::Done)
}

fn with_id(job: JobId, mut answer: Value) -> Value {
    if let Value::Object(fields) = &mut answer {
        fields.insert("job_id".to_owned(), json!(job));
    }
    answer
}

fn state(job: &Job) -> String {
    match (job.status, job.position) {
        _ if job.cancelling => "cancelling".to_owned(),
        (Status::Running, _) => format!("running {:.0} %", (job.progress * 100.0).floor()),
        (Status::Pending, Some(place)) => {
            // To be behind others needs no words: the place says it.
            let why = job.waiting_for.as_deref().filter(|why| *why != "ahead");
            let why = why.map(|why| format!(": {}", why.replace('_', " "))).unwrap_or_default();
            let wait =
                job.estimated_wait_seconds.map(|seconds| format!(", {}", about(seconds))).unwrap_or_default();
            format!("pending, place {place}{wait}{why}")
        }
        (status, _) => status.to_string(),
    }
}

/// A time that is estimated, and told as exactly as that is.
fn about(seconds: f64) -> String {
    if seconds < 90.0 {
        format!("in about {seconds:.0} s")
    } else {
        format!("in about {:.0} min", seconds / 60.0)
    }
}

/// How long ago, in the largest unit that fits.
fn age(then: Timestamp, now: DateTime<Utc>) -> String {
    let seconds = (now - then.0).num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(fields: Value) -> Job {
        let mut job = json!({
            "job_id": JobId::mint(), "status": "pending", "progress": 0.0, "params": { "prompt": "x" },
            "created_at": "2026-07-01T00:00:00.000000Z", "a_field_of_tomorrow": 1,
        });
        let Value::Object(more) = fields else { panic!("an object") };
        job.as_object_mut().unwrap().extend(more);
        serde_json::from_value(job).unwrap()
    }

    #[test]
    fn a_state_says_why_a_job_waits() {
        assert_eq!(state(&job(json!({ "position": 2, "waiting_for": "ahead" }))), "pending, place 2");
        let down = job(json!({ "position": 1, "waiting_for": "backend_down" }));
        assert_eq!(state(&down), "pending, place 1: backend down");
        let known = job(json!({ "position": 3, "waiting_for": "ahead", "estimated_wait_seconds": 12.4 }));
        assert_eq!(state(&known), "pending, place 3, in about 12 s");
        let swap =
            job(json!({ "position": 9, "waiting_for": "model_swap", "estimated_wait_seconds": 601.0 }));
        assert_eq!(state(&swap), "pending, place 9, in about 10 min: model swap");
        assert_eq!(state(&job(json!({ "status": "running", "progress": 0.437 }))), "running 43 %");
        assert_eq!(state(&job(json!({ "status": "running", "cancelling": true }))), "cancelling");
        assert_eq!(state(&job(json!({ "status": "failed" }))), "failed");
    }

    #[test]
    fn ages_are_told_in_one_unit() {
        let then = Timestamp::from_millis(0);
        let after = |seconds| age(then, DateTime::from_timestamp(seconds, 0).unwrap());
        assert_eq!([after(59), after(60), after(7_300), after(200_000)], ["59 s", "1 min", "2 h", "2 d"]);
        assert_eq!(after(-5), "0 s", "clocks may differ");
    }
}
