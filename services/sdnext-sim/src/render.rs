//! A job from the lock to its answer, stage by stage, in the recorded order.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Pace;
use crate::connection::Connection;
use crate::encode::Format;
use crate::faults::Fault;
use crate::info;
use crate::job::Job;
use crate::picture::Pixels;
use crate::sampling::{Pass, Sampled};
use crate::sim::Sim;
use crate::state::Stage;
use crate::tasks::Tasks;
use crate::truth::{Finished, Running};

/// What a job answers.
#[derive(Debug)]
pub(crate) enum Reply {
    Images {
        images: Vec<String>,
        info: String,
    },
    /// An exception by name and message.
    Exception(&'static str, &'static str),
    Status(u16),
}

/// A written image.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) text: String,
}

/// Waits for its turn, then runs `job` to its end, whether or not anybody waits for the answer.
pub(crate) async fn render(
    sim: &Arc<Sim>,
    job: Job,
    task: &str,
    connection: Option<Arc<Connection>>,
) -> Reply {
    sim.lock().counters.waiting += 1;
    let _turn = sim.turn.lock().await;
    let started_at = sim.clock.micros();
    let (fault, number) = {
        let mut inner = sim.lock();
        let fault = inner.faults.take();
        inner.counters.waiting -= 1;
        if let Some(tasks) = &mut inner.tasks {
            tasks.begin(task, job.kind.script());
            inner.state.interrupted = false;
            inner.state.skipped = false;
        }
        inner.counters.renders_started += 1;
        let number = inner.counters.renders_started;
        inner.counters.running = Some(Running {
            number,
            kind: job.kind.name().to_owned(),
            prompt: job.prompt().to_owned(),
            seed: job.seed,
            passes: job.passes(),
            started_at,
            step_changed_at: started_at,
            fault,
            ..Running::default()
        });
        inner.log.write(
            "INFO",
            "api",
            &format!("{}: steps={} seed={}", job.kind.name(), job.steps, job.seed),
        );
        (fault, number)
    };
    let (prompt, seed) = (job.prompt().to_owned(), job.seed);
    let mut run = Run {
        sim,
        job,
        fault,
        connection,
        pace: Pace::new(),
        pass: 0,
        steps_done: 0,
        outcome: "done",
        raised: None,
        has_tasks: sim.config().dialect.has_tasks(),
        images: Vec::new(),
        infotexts: Vec::new(),
        tiles: Vec::new(),
        grid: false,
        model: String::new(),
    };
    let reply = run.go().await;
    sim.tell(|tasks| tasks.end(task, !matches!(reply, Reply::Images { .. })));
    let images = if let Reply::Images { images, .. } = &reply { images.len() } else { 0 };
    sim.ended(Finished {
        number,
        prompt,
        seed,
        steps_done: run.steps_done,
        images: u32::try_from(images).unwrap_or(u32::MAX),
        outcome: run.outcome.to_owned(),
        started_at,
        ended_at: sim.clock.micros(),
    });
    reply
}

pub(crate) struct Run<'a> {
    pub(crate) sim: &'a Arc<Sim>,
    pub(crate) job: Job,
    pub(crate) fault: Option<Fault>,
    pub(crate) connection: Option<Arc<Connection>>,
    pub(crate) pace: Pace,
    pub(crate) pass: u32,
    pub(crate) steps_done: u32,
    pub(crate) outcome: &'static str,
    /// The exception that ends it, by name and message.
    pub(crate) raised: Option<(&'static str, &'static str)>,
    /// Whether the dialect knows tasks.
    pub(crate) has_tasks: bool,
    pub(crate) images: Vec<Image>,
    pub(crate) infotexts: Vec<String>,
    /// Whole pictures, kept only where a grid is made of them.
    pub(crate) tiles: Vec<Pixels>,
    pub(crate) grid: bool,
    /// The model this job runs with, even if somebody takes it away.
    pub(crate) model: String,
}

/// Whether to go on with the next iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Go,
    Stop,
}

impl Run<'_> {
    async fn go(&mut self) -> Reply {
        if let Some(Fault::HttpStatus(code)) = self.fault {
            self.outcome = "refused";
            return Reply::Status(code);
        }
        let before = self.sim.lock().models.selected.clone();
        if self.has_tasks && !self.choose_model() {
            return self.exception("RuntimeError", "model not found").await;
        }
        if !self.ensure_model().await {
            let api = self.begin(self.job.kind.label());
            self.end(&api);
            self.outcome = "failed";
            return Reply::Images { images: Vec::new(), info: String::new() };
        }
        let api = self.begin(self.job.kind.label());
        self.wait(1).await;
        if self.job.prompt.is_none() {
            return self.exception("AssertionError", "").await;
        }
        let loaded_before = self.override_model().await;
        self.model = self.sim.lock().models.loaded.clone().unwrap_or_default();
        let styles = self.begin("Styles");
        self.wait(1).await;
        self.end(&styles);
        let process = self.begin("Process");
        self.wait(1).await;
        if self.job.images() < 1 {
            return self.exception("IndexError", "list index out of range").await;
        }
        if self.fault == Some(Fault::Http500) {
            return self.exception("RuntimeError", "simulated exception").await;
        }
        let passes = self.job.passes();
        self.sim.tell(|tasks| tasks.refine(passes));
        for iteration in 0..self.job.n_iter {
            {
                let mut inner = self.sim.lock();
                if inner.state.interrupted {
                    break;
                }
                if inner.state.skipped {
                    // The flag of the iteration before swallows this one as well.
                    inner.state.skipped = false;
                    if !self.has_tasks {
                        continue;
                    }
                }
            }
            if self.iterate(iteration).await == Next::Stop {
                break;
            }
            self.sim.tell(Tasks::next_job);
        }
        if let Some((name, message)) = self.raised {
            return self.exception(name, message).await;
        }
        self.save_grid().await;
        if let Some(loaded) = loaded_before {
            self.sim.load(&loaded, &mut self.pace).await;
        }
        if self.has_tasks && self.job.restores {
            // As read: the option goes back, and the next job loads what it names.
            self.sim.select(&before);
        }
        self.end(&process);
        self.wait(1).await;
        self.end(&api);
        self.reply()
    }

    /// Base, sampling, the second pass, decoding and saving of one batch.
    async fn iterate(&mut self, iteration: i64) -> Next {
        let base = self.begin("Base");
        self.wait(4).await;
        self.prepare().await;
        let (width, height, steps) = (self.job.width, self.job.height, self.job.sampled_steps);
        let mut sampled = self.sample(Pass { iteration, width, height, steps }).await;
        self.end(&base);
        self.wait(30).await;
        let hires = self.job.hires.clone();
        let mut size = (width, height);
        if let (Sampled::Whole, Some(hires)) = (&sampled, hires) {
            let stage = self.begin("Hires");
            self.wait(4).await;
            size = (hires.width, hires.height);
            if hires.sampled {
                self.sim.tell(Tasks::next_job);
                self.prepare().await;
                let (width, height) = size;
                sampled = self.sample(Pass { iteration, width, height, steps: hires.steps }).await;
            }
            self.end(&stage);
            self.wait(30).await;
        }
        match sampled {
            Sampled::Whole => self.decode(iteration, size).await,
            Sampled::Skipped => {
                self.outcome = "skipped";
                Next::Go
            }
            Sampled::Failed => {
                self.outcome = "failed";
                Next::Stop
            }
            Sampled::Cut { step, interrupted } if self.has_tasks => {
                self.outcome = if interrupted { "interrupted" } else { "skipped" };
                // As read: what there is of the picture is decoded, at its full size.
                self.answer_unfinished(iteration, step, "Full").await;
                Next::Go
            }
            Sampled::Cut { step, interrupted } => {
                self.outcome = if interrupted { "interrupted" } else { "failed" };
                self.answer_preview(iteration, step).await;
                Next::Stop
            }
        }
    }

    async fn prepare(&mut self) {
        let params = self.begin("Params");
        let encode = self.begin("TE Encode");
        self.wait(8).await;
        self.end(&encode);
        self.wait(4).await;
        self.end(&params);
    }

    async fn decode(&mut self, iteration: i64, (width, height): (i64, i64)) -> Next {
        let stage = self.begin("VAE Decode");
        let time = {
            let config = self.sim.config();
            let time = config.scaled(config.decode_time);
            time.mul_f64((width * height * self.job.batch_size) as f64 / (512.0 * 512.0))
        };
        let drawing = self.draw(iteration, width, height);
        self.pace.pass(time).await;
        let drawn = drawing.await.unwrap_or_default();
        let interrupted = {
            let mut inner = self.sim.lock();
            inner.state.end(&stage);
            inner.state.interrupted
        };
        self.wait(5).await;
        if interrupted && !self.has_tasks {
            self.outcome = "interrupted";
            return Next::Stop;
        }
        for (image, tile) in drawn {
            self.infotexts.push(image.text.clone());
            if self.job.save_images {
                let folder = if self.job.init.is_some() { "image" } else { "text" };
                self.save(folder, image.bytes.clone()).await;
                self.tiles.push(tile);
            }
            self.images.push(image);
        }
        let images = u32::try_from(self.images.len()).unwrap_or(u32::MAX);
        self.sim.note(|running| running.images = images);
        Next::Go
    }

    pub(crate) async fn save(&mut self, folder: &str, bytes: Arc<Vec<u8>>) {
        let stage = self.begin("Save image");
        {
            let date = self.sim.clock.now().format("%Y-%m-%d").to_string();
            let extension = self.format().extension();
            let mut inner = self.sim.lock();
            let name = inner.save(folder, &date, extension, bytes);
            inner.state.output(&stage, name);
        }
        self.wait(5).await;
        self.end(&stage);
    }

    /// Leaves every stage open, which is how the state comes to read as running.
    async fn exception(&mut self, name: &'static str, message: &'static str) -> Reply {
        self.outcome = "exception";
        self.sim.lock().log.write("ERROR", "api", &format!("API: {name}: {message}"));
        self.wait(400).await;
        Reply::Exception(name, message)
    }

    fn reply(&mut self) -> Reply {
        if self.infotexts.is_empty() {
            self.infotexts.push(info::infotext(&self.job, &self.model, Some(0)));
        }
        let timestamp = self.sim.lock().state.timestamp().to_owned();
        let info = info::info(&self.job, &self.infotexts, self.grid, &timestamp);
        let send = self.job.send_images && self.fault != Some(Fault::NoImages);
        let mut images: Vec<String> =
            self.images.iter().filter(|_| send).map(|image| crate::encode::base64(&image.bytes)).collect();
        if self.fault == Some(Fault::TruncatedImage) {
            for image in &mut images {
                image.truncate(image.len() / 8 * 4);
            }
        }
        Reply::Images { images, info }
    }

    pub(crate) fn begin(&self, label: &'static str) -> Stage {
        self.stage(label);
        self.sim.lock().state.begin(label)
    }

    pub(crate) fn end(&self, stage: &Stage) {
        self.sim.lock().state.end(stage);
    }

    pub(crate) fn stage(&self, label: &'static str) {
        self.sim.note(|running| label.clone_into(&mut running.stage));
    }

    /// Spends `milliseconds` of the server's time.
    pub(crate) async fn wait(&mut self, milliseconds: u64) {
        let time = self.sim.config().scaled(Duration::from_millis(milliseconds));
        self.pace.pass(time).await;
    }

    pub(crate) fn format(&self) -> Format {
        self.job.format.unwrap_or_else(|| {
            let inner = self.sim.lock();
            let option = inner.options.get("samples_format").and_then(|format| format.as_str());
            Format::from_option(option.unwrap_or("jpg"))
        })
    }
}
