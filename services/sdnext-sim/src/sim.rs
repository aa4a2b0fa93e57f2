//! What all parts of one stand-in server share.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::{Clock, Pace};
use crate::config::Config;
use crate::faults::{Armed, Fault};
use crate::limiter::Limiter;
use crate::log::Log;
use crate::models::Models;
use crate::preview::Canvas;
use crate::state::State;
use crate::tasks::Tasks;
use crate::truth::{Finished, Running, Truth};

/// Saved files kept; the oldest go first.
const FILES: usize = 500;
/// Ended jobs remembered.
const FINISHED: usize = 10_000;

pub(crate) struct Sim {
    pub(crate) clock: Clock,
    inner: Mutex<Inner>,
    limiter: Mutex<Limiter>,
    /// One lock for all generation posts.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// Workers that requests run on; a post keeps its worker while it waits for the lock.
    pub(crate) workers: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    /// Frees a job that hangs.
    pub(crate) release: Notify,
    /// Closes every connection without another word.
    pub(crate) connections: CancellationToken,
    /// As if the process had been killed.
    pub(crate) killed: CancellationToken,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) state: State,
    /// Where the dialect knows tasks.
    pub(crate) tasks: Option<Tasks>,
    pub(crate) models: Models,
    pub(crate) options: Map<String, Value>,
    pub(crate) faults: Armed,
    pub(crate) log: Log,
    pub(crate) files: VecDeque<(String, Arc<Vec<u8>>)>,
    pub(crate) files_written: u64,
    /// What the running sampling pass works on.
    pub(crate) canvas: Option<Arc<Canvas>>,
    /// The last whole image, which preview method `None` shows.
    pub(crate) last_image: Option<Arc<str>>,
    pub(crate) counters: Truth,
    pub(crate) finished: VecDeque<Finished>,
}

impl Sim {
    pub(crate) fn new(config: Config) -> Self {
        let clock = Clock::new();
        let mut options = config.dialect.options();
        options.insert("show_progress_type".to_owned(), json!(config.previews));
        let mut models = Models::new(config.models.clone());
        let mut state = State::new(clock.clone());
        state.dialect = config.dialect;
        if config.start_up_time.is_zero() {
            // As after the start of the recorded server, which had begun two stages by then.
            for _ in 0..2 {
                let loading = state.begin("Load model");
                state.end(&loading);
            }
        } else {
            models.loaded = None;
        }
        let workers = Arc::new(Semaphore::new(config.threads.max(1)));
        let inner = Inner {
            state,
            tasks: config.dialect.has_tasks().then(|| Tasks::new(clock.clone())),
            models,
            options,
            faults: Armed::default(),
            log: Log::new(clock.clone()),
            files: VecDeque::new(),
            files_written: 0,
            canvas: None,
            last_image: None,
            counters: Truth::default(),
            finished: VecDeque::new(),
            config,
        };
        let connections = CancellationToken::new();
        Self {
            clock,
            inner: Mutex::new(inner),
            limiter: Mutex::new(Limiter::default()),
            turn: Arc::default(),
            workers,
            tasks: TaskTracker::new(),
            release: Notify::new(),
            connections,
            killed: CancellationToken::new(),
        }
    }

    /// The shared state; hold it for a moment only.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn config(&self) -> Config {
        self.lock().config.clone()
    }

    /// Counts a request against the rate limit.
    pub(crate) fn admit(&self, client: std::net::IpAddr, path: &str, cost: u32) -> bool {
        let config = self.config();
        // Only SD.Next has one.
        let limit = if config.dialect.has_tasks() { 0 } else { config.rate_limit };
        let mut limiter = self.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = limiter.admit(client, path, cost, limit, tokio::time::Instant::now());
        drop(limiter);
        if !admitted {
            self.lock().counters.rate_limited += 1;
        }
        admitted
    }

    /// Loads `title` in view of everybody, which takes its time.
    pub(crate) async fn load(&self, title: &str, pace: &mut Pace) {
        let (stage, time) = {
            let mut inner = self.lock();
            inner.models.loading += 1;
            inner.models.generation += 1;
            inner.models.loaded = None;
            let time = inner.config.scaled(inner.config.load_time);
            (inner.state.begin("Load model"), time)
        };
        pace.pass(time).await;
        let mut inner = self.lock();
        inner.models.loading -= 1;
        inner.models.loads += 1;
        inner.models.loaded = Some(title.to_owned());
        inner.log.write("INFO", "sd_models", &format!("Load model: name=\"{title}\""));
        inner.state.end(&stage);
    }

    /// Makes `title` the model that the options name.
    pub(crate) fn select(&self, title: &str) {
        let mut inner = self.lock();
        title.clone_into(&mut inner.models.selected);
        inner.options.insert("sd_model_checkpoint".to_owned(), json!(title));
    }

    pub(crate) fn arm(&self, fault: Fault, jobs: u32) {
        let mut inner = self.lock();
        if fault == Fault::Wedged {
            inner.models.wedged = true;
        } else {
            inner.faults.arm(fault, jobs);
        }
    }

    /// Tells the tasks, where the dialect has any.
    pub(crate) fn tell(&self, change: impl FnOnce(&mut Tasks)) {
        if let Some(tasks) = &mut self.lock().tasks {
            change(tasks);
        }
    }

    /// Notes in the truth where the running job is.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Running)) {
        if let Some(running) = &mut self.lock().counters.running {
            change(running);
        }
    }

    pub(crate) fn ended(&self, finished: Finished) {
        let mut inner = self.lock();
        inner.counters.running = None;
        inner.counters.renders_finished += 1;
        if inner.finished.len() == FINISHED {
            inner.finished.pop_front();
        }
        inner.finished.push_back(finished);
    }

    pub(crate) fn truth(&self) -> Truth {
        let inner = self.lock();
        Truth {
            now: self.clock.micros(),
            model: inner.models.loaded.clone(),
            loads: inner.models.loads,
            wedged: inner.models.wedged,
            faults: inner.faults.list(),
            finished: inner.finished.iter().cloned().collect(),
            ..inner.counters.clone()
        }
    }
}

impl Inner {
    /// Keeps a written file; answers its name without the extension.
    pub(crate) fn save(&mut self, folder: &str, date: &str, extension: &str, bytes: Arc<Vec<u8>>) -> String {
        let model = self.models.loaded.as_deref().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        let name = format!("outputs/{folder}/{:05}-{date}-{model}", self.files_written);
        self.files_written += 1;
        if self.files.len() == FILES {
            self.files.pop_front();
        }
        self.files.push_back((format!("{name}.{extension}"), bytes));
        name
    }
}
