//! Previews: drawn when a poll asks for one, once per step, away from the async threads.

use std::sync::Arc;

use crate::encode::{Format, base64, encode};
use crate::picture::{Pixels, Scene, grid};
use crate::sim::Sim;

/// What a sampling pass works on.
#[derive(Debug)]
pub(crate) struct Canvas {
    pub(crate) scenes: Vec<Scene>,
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) steps: u32,
    pub(crate) format: Format,
    /// The last preview and the step it shows.
    made: std::sync::Mutex<Option<(u32, Arc<str>)>>,
}

impl Canvas {
    pub(crate) fn new(scenes: Vec<Scene>, width: u32, height: u32, steps: u32, format: Format) -> Self {
        Self { scenes, width, height, steps, format, made: std::sync::Mutex::new(None) }
    }

    /// The tiles after `step` steps, one for each picture of the batch.
    pub(crate) fn tiles(&self, step: u32, method: &str) -> Vec<Pixels> {
        let shrink = match method {
            "Simple" => 8,
            "Full" | "TAESD" => 1,
            _ => 4,
        };
        let done = step as f32 / self.steps.max(1) as f32;
        let (width, height) = ((self.width / shrink).max(1), (self.height / shrink).max(1));
        self.scenes.iter().map(|scene| scene.draw_unfinished(width, height, done)).collect()
    }

    fn cached(&self, step: u32) -> Option<Arc<str>> {
        let made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        made.as_ref().filter(|(of, _)| *of == step).map(|(_, text)| text.clone())
    }
}

/// A preview as base64, and whether this call drew it; `None` before the first step of a pass.
pub(crate) async fn current(sim: &Arc<Sim>) -> Option<(Arc<str>, bool, &'static str)> {
    let (canvas, step, method) = {
        let inner = sim.lock();
        let method = inner.options.get("show_progress_type").and_then(|method| method.as_str());
        let method = method.unwrap_or("Approximate").to_owned();
        if method == "None" {
            let running = !inner.state.job().is_empty();
            let last = inner.last_image.clone().filter(|_| running)?;
            return Some((last, false, "image/jpeg"));
        }
        let step = inner.state.step();
        (inner.canvas.clone().filter(|_| step > 0)?, step, method)
    };
    let media_type = canvas.format.media_type();
    if let Some(text) = canvas.cached(step) {
        return Some((text, false, media_type));
    }
    let drawing = sim.tasks.spawn_blocking(move || {
        let tiles = canvas.tiles(step, &method);
        let pixels = grid(&tiles);
        let text: Arc<str> = base64(&encode(&pixels, canvas.format, None)).into();
        *canvas.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((step, text.clone()));
        text
    });
    let text = drawing.await.ok()?;
    let mut inner = sim.lock();
    inner.counters.previews_drawn += 1;
    inner.state.preview_id = step;
    Some((text, true, media_type))
}
