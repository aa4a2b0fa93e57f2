//! The sampling passes of a job, and what can end one early; and the drawing of what came out.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::encode::{base64, encode};
use crate::faults::Fault;
use crate::info;
use crate::picture::{Pixels, Scene, grid};
use crate::preview::Canvas;
use crate::render::{Image, Run};
use crate::state::Stage;

/// One sampling pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    pub(crate) iteration: i64,
    pub(crate) width: i64,
    pub(crate) height: i64,
    pub(crate) steps: i64,
}

/// How a pass ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sampled {
    Whole,
    Skipped,
    /// After this step; its preview becomes the image.
    Cut {
        step: u32,
        interrupted: bool,
    },
    /// Before any step: there is nothing to show.
    Failed,
}

impl Run<'_> {
    pub(crate) async fn sample(&mut self, pass: Pass) -> Sampled {
        let stage = self.begin("Inference");
        self.pass += 1;
        let steps = u32::try_from(pass.steps.max(1)).unwrap_or(u32::MAX);
        self.note_step(0, steps);
        let (wedged, generation, step_time) = {
            let inner = self.sim.lock();
            let time = inner.config.scaled(inner.config.step_time);
            (inner.models.wedged, inner.models.generation, time)
        };
        if wedged || !self.job.drawable() {
            self.wait(10).await;
            return self.fail(&stage, "RuntimeError: the pipeline cannot run");
        }
        let pixels = pass.width * pass.height * self.job.batch_size;
        let step_time = step_time.mul_f64(pixels as f64 / (512.0 * 512.0));
        self.sim.tell(|tasks| tasks.launch(steps));
        self.sim.lock().canvas = Some(Arc::new(self.canvas(pass, steps)));
        for step in 1..=steps {
            if let Some(end) = self.suffer(&stage, step, steps, step_time).await {
                return end;
            }
            self.pace.pass(step_time).await;
            if self.sim.lock().models.generation != generation {
                return self.robbed(&stage).await;
            }
            if let Some(end) = self.step_done(&stage, step, steps) {
                return end;
            }
        }
        self.end(&stage);
        Sampled::Whole
    }

    /// Counts a step and looks at the flags, which is the only moment they are looked at.
    fn step_done(&mut self, stage: &Stage, step: u32, steps: u32) -> Option<Sampled> {
        self.steps_done += 1;
        let (interrupted, skipped) = {
            let mut inner = self.sim.lock();
            // The step and the time of its change become visible together.
            if let Some(running) = &mut inner.counters.running {
                running.step = step;
                running.step_changed_at = self.sim.clock.micros();
            }
            inner.state.stepped(step, steps);
            if let Some(tasks) = &mut inner.tasks {
                tasks.stepped(step);
            }
            let flags = (inner.state.interrupted, inner.state.skipped);
            if flags.0 || flags.1 {
                inner.state.end(stage);
            }
            flags
        };
        match (interrupted, skipped) {
            (true, _) => Some(Sampled::Cut { step, interrupted: true }),
            (_, true) if self.has_tasks => Some(Sampled::Cut { step, interrupted: false }),
            (_, true) => Some(Sampled::Skipped),
            _ => None,
        }
    }

    /// Lets the armed fault strike where it belongs.
    async fn suffer(&mut self, stage: &Stage, step: u32, steps: u32, step_time: Duration) -> Option<Sampled> {
        let middle = step == steps / 2 + 1;
        match self.fault {
            Some(Fault::OutOfMemoryBeforeFirstStep | Fault::OutOfMemoryAfterStep) if self.has_tasks => {
                self.pace.pass(step_time / 4).await;
                let message = "CUDA out of memory. Tried to allocate 2.00 GiB";
                self.raised = Some(("OutOfMemoryError", message));
                self.end(stage);
                Some(Sampled::Failed)
            }
            Some(Fault::OutOfMemoryBeforeFirstStep) if step == 1 => {
                self.pace.pass(step_time / 4).await;
                self.out_of_memory();
                self.pace.pass(step_time * 3 / 4).await;
                self.end(stage);
                Some(Sampled::Failed)
            }
            Some(Fault::OutOfMemoryAfterStep) if step == 2 => {
                self.pace.pass(step_time * 3 / 4).await;
                self.out_of_memory();
                self.pace.pass(step_time / 4).await;
                self.end(stage);
                Some(Sampled::Cut { step: 1, interrupted: false })
            }
            Some(Fault::DropConnection) if middle => {
                if let Some(connection) = &self.connection {
                    connection.drop_now();
                }
                None
            }
            Some(Fault::Hang) if middle => {
                self.hang().await;
                None
            }
            _ => None,
        }
    }

    fn out_of_memory(&self) {
        let mut inner = self.sim.lock();
        inner.state.interrupted = true;
        let (width, height) = (self.job.width, self.job.height);
        let bytes = width.max(1) * height.max(1) * 256;
        let message = format!(
            "Processing: RuntimeError: [enforce fail at alloc_cpu.cpp:124] data. DefaultCPUAllocator: can't allocate \
             memory: you tried to allocate {bytes} bytes. Error code 12 (Cannot allocate memory), out of memory"
        );
        inner.log.write("ERROR", "processing_diffusers", &message);
    }

    /// Stands still until released or interrupted.
    async fn hang(&mut self) {
        loop {
            let released = self.sim.release.notified();
            if self.sim.lock().state.interrupted {
                break;
            }
            if tokio::time::timeout(Duration::from_millis(10), released).await.is_ok() {
                break;
            }
        }
        self.pace.restart();
    }

    fn fail(&self, stage: &Stage, message: &str) -> Sampled {
        let mut inner = self.sim.lock();
        inner.log.write("ERROR", "processing_diffusers", &format!("Processing: {message}"));
        inner.state.interrupted = true;
        inner.state.end(stage);
        Sampled::Failed
    }

    /// Somebody loaded a model while this job ran: the job is lost, and the server wedged.
    async fn robbed(&mut self, stage: &Stage) -> Sampled {
        {
            let mut inner = self.sim.lock();
            inner.state.interrupted = true;
            inner.models.wedged = true;
        }
        while self.sim.lock().models.loading > 0 {
            self.wait(20).await;
        }
        self.fail(stage, "RuntimeError: the model was replaced")
    }

    fn note_step(&self, step: u32, steps: u32) {
        let (pass, now) = (self.pass, self.sim.clock.micros());
        self.sim.note(|running| {
            running.pass = pass;
            running.step = step;
            running.steps = steps;
            running.step_changed_at = now;
        });
    }

    fn canvas(&self, pass: Pass, steps: u32) -> Canvas {
        let scenes =
            self.seeds(pass.iteration).map(|seed| Scene::new(self.job.prompt(), seed, self.job.mix()));
        Canvas::new(scenes.collect(), side(pass.width), side(pass.height), steps, self.format())
    }

    fn seeds(&self, iteration: i64) -> impl Iterator<Item = i64> + use<> {
        let first = self.job.seed + iteration * self.job.batch_size;
        first..first + self.job.batch_size
    }

    /// Starts to draw the pictures of one batch.
    pub(crate) fn draw(&self, iteration: i64, width: i64, height: i64) -> JoinHandle<Vec<(Image, Pixels)>> {
        let half = self.fault == Some(Fault::WrongSize);
        let shrink = |length: i64| if half { side(length / 2) } else { side(length) };
        let (width, height, format) = (shrink(width), shrink(height), self.format());
        let (prompt, mix) = (self.job.prompt().to_owned(), self.job.mix());
        let first = self.job.seed;
        let work: Vec<(i64, String)> = self
            .seeds(iteration)
            .map(|seed| (seed, info::infotext(&self.job, &self.model, Some(seed - first))))
            .collect();
        let sim = self.sim.clone();
        self.sim.tasks.spawn_blocking(move || {
            let mut drawn = Vec::new();
            for (seed, text) in work {
                let pixels = Scene::new(&prompt, seed, mix).draw(width, height);
                let bytes = Arc::new(encode(&pixels, format, Some(&text)));
                drawn.push((Image { bytes, text }, pixels));
            }
            if let Some((image, _)) = drawn.last() {
                let last = base64(&image.bytes).into();
                sim.lock().last_image = Some(last);
            }
            drawn
        })
    }

    /// What an interrupted job has to show: the preview of its last step.
    pub(crate) async fn answer_preview(&mut self, iteration: i64, step: u32) {
        let canvas = {
            let mut inner = self.sim.lock();
            let stage = inner.state.begin("VAE Decode");
            inner.state.end(&stage);
            // The recorded server shows its flag again after this stage, though every other begin wipes it.
            inner.state.interrupted = true;
            inner.canvas.clone()
        };
        self.show_unfinished(canvas, iteration, step, "Approximate").await;
    }

    /// The picture as far as it has come, at its own size.
    pub(crate) async fn answer_unfinished(&mut self, iteration: i64, step: u32, method: &'static str) {
        let canvas = self.sim.lock().canvas.clone();
        self.show_unfinished(canvas, iteration, step, method).await;
    }

    async fn show_unfinished(
        &mut self,
        canvas: Option<Arc<Canvas>>,
        iteration: i64,
        step: u32,
        method: &'static str,
    ) {
        let Some(canvas) = canvas else { return };
        let format = self.format();
        let tiles = self.sim.tasks.spawn_blocking(move || (canvas.tiles(step, method), canvas));
        let Ok((tiles, _canvas)) = tiles.await else { return };
        for (index, tile) in tiles.iter().enumerate() {
            let index = iteration * self.job.batch_size + i64::try_from(index).unwrap_or(0);
            let text = info::infotext(&self.job, &self.model, Some(index));
            self.infotexts.push(text.clone());
            if self.job.n_iter == 1 && !self.has_tasks {
                // As recorded: the text of a single cut job appears twice.
                self.infotexts.push(text.clone());
            }
            self.images.push(Image { bytes: Arc::new(encode(tile, format, Some(&text))), text });
        }
    }

    /// Where images are saved, several of one job are saved as a grid too, which then comes first.
    pub(crate) async fn save_grid(&mut self) {
        if !self.job.save_images || self.tiles.len() < 2 {
            return;
        }
        let tiles = std::mem::take(&mut self.tiles);
        let text = info::infotext(&self.job, &self.model, None);
        let (format, description) = (self.format(), text.clone());
        let drawing =
            self.sim.tasks.spawn_blocking(move || encode(&grid(&tiles), format, Some(&description)));
        let Ok(bytes) = drawing.await else { return };
        let bytes = Arc::new(bytes);
        self.save("grids", bytes.clone()).await;
        self.grid = true;
        self.infotexts.insert(0, text.clone());
        self.images.insert(0, Image { bytes, text });
    }
}

fn side(length: i64) -> u32 {
    u32::try_from(length.max(1)).unwrap_or(1)
}
