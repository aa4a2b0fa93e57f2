//! What only A1111 and Forge are asked: which of them it is, what they say of a task, and to interrupt that task alone.
//!
//! Both take a task's name from us (`force_task_id`) and tell by it whether that task waits, runs or is done (A1111 and
//! Forge, `modules/progress.py`). So nothing is inferred here: what the task's own answer does not claim is another's.

use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use stepcast_shared::ids::JobId;

use crate::dialect::Dialect;
use crate::sample::{Sample, TaskSample};
use crate::sdnext::{Look, SdNext, Unusable};

/// What probing has found out about a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Family {
    /// Its kind.
    pub dialect: Dialect,
    /// Whether a task can be named and asked for. Versions before the field, and servers without their own page, cannot.
    pub names_tasks: bool,
}

/// The task of one attempt, as the server knows it.
#[derive(Debug)]
pub struct Task {
    id: String,
    named: bool,
    /// Whether the newest answer said that it runs.
    was_active: bool,
}

/// How an attempt is named: the shape is free, and a person who reads it in a log sees whose it is.
pub fn task_id(job_id: JobId, attempt: u32) -> String {
    format!("stepcast({job_id}-{attempt})")
}

impl Task {
    /// The task of an attempt that is about to be posted to a server of this family.
    pub fn new(family: Family, job_id: JobId, attempt: u32) -> Self {
        Self { id: task_id(job_id, attempt), named: family.names_tasks, was_active: false }
    }
}

impl SdNext {
    /// Finds out what kind of server this is.
    pub(crate) async fn probe(&self) -> Result<Family, Unusable> {
        // Recorded. Neither of the others has the path.
        let version = self.find("/sdapi/v1/version").await?;
        let is_sdnext = version.is_some_and(|version| version["app"].as_str() == Some("sd.next"));
        // Older versions of SD.Next do not name themselves; the others have no such path either.
        if is_sdnext || self.find("/sdapi/v1/checkpoint").await?.is_some() {
            return Ok(Family::default());
        }
        let options = json_of(&self.get("/sdapi/v1/options").await?);
        let flags = self.find("/sdapi/v1/cmd-flags").await?.unwrap_or_default();
        // Forge adds options (`forge_preset` and others, `modules_forge/main_entry.py`) and, since its first month, a
        // flag (`forge_ref_a1111_home`, `modules/cmd_args.py`).
        let is_forge = [&options, &flags].into_iter().any(|value| {
            value.as_object().is_some_and(|fields| fields.keys().any(|name| name.starts_with("forge_")))
        });
        let schema = self.find("/openapi.json").await?.unwrap_or_default();
        let named = schema["paths"].get("/internal/progress").is_some()
            && schema["components"].to_string().contains("\"force_task_id\"");
        let dialect = if is_forge { Dialect::Forge } else { Dialect::A1111 };
        Ok(Family { dialect, names_tasks: named })
    }

    /// A look at an A1111 or Forge server.
    pub(crate) async fn look_at_webui(&self) -> Result<Look, Unusable> {
        let mut sample = self.sample().await?;
        let options = json_of(&self.get("/sdapi/v1/options").await?);
        let model = options["sd_model_checkpoint"].as_str().filter(|model| !model.is_empty());
        if let Sample::Seen(seen) = &mut sample
            && seen.is_active()
        {
            // Only told, never acted on: a task that fails before it begins is listed for ever.
            let pending = self.find("/internal/pending-tasks").await?.unwrap_or_default();
            let waiting = pending["tasks"].as_array().map_or(0, Vec::len);
            if waiting > 0 {
                seen.job = format!("{}, {waiting} waiting,", seen.job);
            }
        }
        Ok(Look { sample, model: model.map(str::to_owned) })
    }

    /// Looks at the render of a task. An `Err` says only that this look failed.
    pub async fn sample_task(&self, task: &mut Task) -> Result<Sample, Unusable> {
        // The state comes first: between two answers that both say that the task runs, it is the task's own.
        let state = self.sample().await?;
        if !task.named {
            return Ok(state);
        }
        let known = self.task(task).await?;
        let was_active = std::mem::replace(&mut task.was_active, matches!(known, TaskSample::Active { .. }));
        Ok(Sample::Task(match (known, state) {
            (TaskSample::Active { fraction, .. }, Sample::Seen(seen)) if was_active => {
                TaskSample::Active { fraction, state: Some(seen) }
            }
            (known, _) => known,
        }))
    }

    /// Raises the interrupt flag; where tasks have names, only while this one runs.
    pub async fn interrupt_task(&self, task: &Task) -> Result<(), Unusable> {
        if task.named && !matches!(self.task(task).await?, TaskSample::Active { .. }) {
            return Ok(());
        }
        self.interrupt().await
    }

    /// Whether a task waits or runs; `None` where tasks have no names.
    pub async fn has_task(&self, task: &Task) -> Result<Option<bool>, Unusable> {
        if !task.named {
            return Ok(None);
        }
        Ok(Some(match self.task(task).await? {
            TaskSample::Queued => true,
            // An exception leaves its task the current one, though nothing runs.
            TaskSample::Active { .. } => {
                matches!(self.sample().await?, Sample::Seen(seen) if seen.is_active())
            }
            TaskSample::Unknown | TaskSample::Completed => false,
        }))
    }

    async fn task(&self, task: &Task) -> Result<TaskSample, Unusable> {
        // A preview costs the server work; A1111 draws one all the same where its own settings ask for it.
        let body = json!({"id_task": task.id, "id_live_preview": -1, "live_preview": false});
        let request = self.request(Method::POST, "/internal/progress");
        let answer =
            self.answered(request.header(CONTENT_TYPE, "application/json").body(body.to_string())).await?;
        Ok(TaskSample::from_value(&json_of(&answer)))
    }

    /// What a path answers, or that it has no such answer.
    async fn find(&self, path: &str) -> Result<Option<Value>, Unusable> {
        match self.get(path).await {
            Ok(body) => Ok(Some(json_of(&body))),
            Err(Unusable::Odd(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn json_of(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}
