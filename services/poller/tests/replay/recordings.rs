//! Reads the recordings: polls, requests and answers of a real server, with previews left out.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use stepcast_poller::{
    plan::{ModelChange, PlanInput},
    sample::Sample,
};

/// A folder of recordings.
pub(crate) struct Recording {
    pub(crate) name: String,
    pub(crate) polls: Vec<Poll>,
    pub(crate) exchanges: Vec<Exchange>,
}

/// One poll, at the moment its answer arrived.
#[derive(Clone)]
pub(crate) struct Poll {
    /// Seconds since the scenario began; negative before it.
    pub(crate) at: f64,
    pub(crate) sample: Sample,
}

/// A request and what became of it.
#[derive(Clone)]
pub(crate) struct Exchange {
    pub(crate) path: String,
    pub(crate) request: Value,
    /// No model was loaded when it was posted, which a poller knows from `GET /sdapi/v1/checkpoint`.
    pub(crate) model_unloaded: bool,
    pub(crate) submitted: f64,
    /// When the answer came, if one did.
    pub(crate) done: Option<f64>,
    pub(crate) status: Option<u16>,
    pub(crate) body: Value,
    pub(crate) error: Option<String>,
}

impl Exchange {
    pub(crate) fn plan_input(&self) -> PlanInput {
        let mut input = PlanInput::from_body(&self.request, self.path.ends_with("img2img"));
        if self.model_unloaded || self.request.get("sd_model_checkpoint").is_some() {
            input.model = ModelChange::Loads;
        }
        if self.request.get("override_settings").is_some() {
            input.model = ModelChange::LoadsAndRestores;
        }
        input
    }

    /// How long the request took.
    pub(crate) fn took(&self) -> Option<Duration> {
        self.done.map(|done| Duration::from_secs_f64(done - self.submitted))
    }
}

impl Recording {
    pub(crate) fn read(name: &str) -> Self {
        let folder = root().join(name);
        let polls = fs::read_to_string(folder.join("progress.jsonl")).unwrap_or_default();
        let exchange = fs::read(folder.join("exchange.json")).unwrap_or_else(|_| b"{}".to_vec());
        let exchange: Value = serde_json::from_slice(&exchange).expect("a recording is JSON");
        let mut exchanges: Vec<_> = list(&exchange["exchanges"]).iter().map(read_exchange).collect();
        for exchange in &mut exchanges {
            exchange.model_unloaded = name == "unload-then-job";
        }
        if exchanges.is_empty() && exchange.get("request").is_some() {
            // The client went away, so there is a request and no answer.
            exchanges.push(Exchange {
                path: "/sdapi/v1/txt2img".to_owned(),
                request: exchange["request"].clone(),
                submitted: 0.0,
                done: None,
                model_unloaded: false,
                status: None,
                body: Value::Null,
                error: None,
            });
        }
        Self { name: name.to_owned(), polls: polls.lines().map(read_poll).collect(), exchanges }
    }

    /// Every folder that has polls or exchanges.
    pub(crate) fn all() -> Vec<Self> {
        let mut names = Vec::new();
        collect(&root(), "", &mut names);
        names.sort();
        let all: Vec<_> = names.iter().map(|name| Self::read(name)).collect();
        assert!(all.len() >= 45, "recordings are missing: {}", all.len());
        all
    }

    /// The last poll answered before a time.
    pub(crate) fn baseline(&self, before: f64) -> Option<&Sample> {
        self.polls.iter().take_while(|poll| poll.at < before).last().map(|poll| &poll.sample)
    }

    /// Polls answered while a request was open, with at least `spacing` seconds between them, from the `skip`th on.
    pub(crate) fn thinned(&self, exchange: &Exchange, spacing: f64, skip: usize) -> Vec<Poll> {
        let end = exchange.done.unwrap_or(f64::MAX);
        let mut kept: Vec<Poll> = Vec::new();
        for poll in
            self.polls.iter().filter(|poll| poll.at >= exchange.submitted && poll.at <= end).skip(skip)
        {
            // A little slack: the recording's own clock is not exact.
            if kept.last().is_none_or(|last| poll.at - last.at >= spacing * 0.97) {
                kept.push(poll.clone());
            }
        }
        kept
    }
}

/// Reads a file beside the scenarios.
pub(crate) fn file(name: &str) -> Value {
    let bytes = fs::read(root().join(name)).expect("the recording is there");
    serde_json::from_slice(&bytes).expect("a recording is JSON")
}

/// The items of a list, none if it is something else.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings")
}

fn collect(folder: &Path, name: &str, names: &mut Vec<String>) {
    let entries = fs::read_dir(folder).expect("the folder can be listed");
    for entry in entries.map(|entry| entry.expect("the folder can be listed")) {
        let child = entry.file_name().to_string_lossy().into_owned();
        let path = if name.is_empty() { child.clone() } else { format!("{name}/{child}") };
        if entry.path().is_dir() {
            collect(&entry.path(), &path, names);
        } else if ["progress.jsonl", "exchange.json"].contains(&child.as_str())
            && names.last().is_none_or(|last| last != name)
        {
            names.push(name.to_owned());
        }
    }
}

fn read_poll(line: &str) -> Poll {
    let row: Value = serde_json::from_str(line).expect("a recording is JSON");
    let sample = match row["status"].as_u64() {
        Some(200) => Sample::from_body(row["body"].to_string().as_bytes()),
        _ => Sample::Missed,
    };
    let number = |name: &str| row[name].as_f64().expect("a number");
    Poll { at: number("t") + number("ms") / 1000.0, sample }
}

fn read_exchange(exchange: &Value) -> Exchange {
    let (request, response) = (&exchange["request"], &exchange["response"]);
    Exchange {
        path: request["path"].as_str().expect("a path").to_owned(),
        request: request["json"].clone(),
        model_unloaded: false,
        submitted: response["t_submit"].as_f64().expect("a number"),
        done: response["t_done"].as_f64(),
        status: response["status"].as_u64().and_then(|status| u16::try_from(status).ok()),
        body: response["body"].clone(),
        error: response["error"].as_str().map(str::to_owned),
    }
}
