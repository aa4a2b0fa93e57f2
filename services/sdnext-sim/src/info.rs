//! The `info` text of an answer: JSON inside JSON, the same keys as in the recordings.

use serde::Serialize;

use crate::job::Job;
use crate::requests::Kind;

#[derive(Serialize)]
struct Info<'a> {
    prompt: &'a str,
    all_prompts: Vec<&'a str>,
    negative_prompt: &'a str,
    all_negative_prompts: Vec<&'a str>,
    seed: i64,
    all_seeds: Vec<i64>,
    subseed: i64,
    all_subseeds: Vec<i64>,
    subseed_strength: u8,
    width: i64,
    height: i64,
    sampler_name: &'a str,
    cfg_scale: f64,
    cfg_end: Option<f64>,
    steps: i64,
    batch_size: i64,
    detailer: bool,
    detailer_model: Option<&'a str>,
    sd_model_hash: Option<&'a str>,
    seed_resize_from_w: i8,
    seed_resize_from_h: i8,
    denoising_strength: f64,
    extra_generation_params: serde_json::Map<String, serde_json::Value>,
    index_of_first_image: u8,
    infotexts: &'a [String],
    styles: [&'a str; 0],
    job_timestamp: &'a str,
    clip_skip: u8,
}

/// The text for `job`; `grid` says that a grid comes before the images.
pub(crate) fn info(job: &Job, infotexts: &[String], grid: bool, job_timestamp: &str) -> String {
    let count = usize::try_from(job.images()).unwrap_or(0);
    let from = |first: i64| (0..job.images()).map(|index| first + index).collect();
    let info = Info {
        prompt: job.prompt(),
        all_prompts: vec![job.prompt(); count],
        negative_prompt: &job.negative_prompt,
        all_negative_prompts: vec![&job.negative_prompt; count],
        seed: job.seed,
        all_seeds: from(job.seed),
        subseed: job.subseed,
        all_subseeds: from(job.subseed),
        subseed_strength: 0,
        width: job.width,
        height: job.height,
        sampler_name: job.sampler,
        cfg_scale: job.cfg_scale,
        cfg_end: None,
        steps: job.steps,
        batch_size: job.batch_size,
        detailer: false,
        detailer_model: None,
        sd_model_hash: None,
        seed_resize_from_w: -1,
        seed_resize_from_h: -1,
        denoising_strength: job.denoising_strength,
        extra_generation_params: serde_json::Map::new(),
        index_of_first_image: u8::from(grid),
        infotexts,
        styles: [],
        job_timestamp,
        clip_skip: 1,
    };
    serde_json::to_string(&info).expect("numbers and texts only")
}

/// What is written into the file of image `index`; `None` stands for the grid of all.
pub(crate) fn infotext(job: &Job, model: &str, index: Option<i64>) -> String {
    use std::fmt::Write as _;

    let mut text = String::new();
    let (prompt, negative) = (job.prompt(), &job.negative_prompt);
    if prompt.is_empty() {
        let _ = writeln!(text, "Negative prompt: {negative}");
    } else {
        let _ = write!(text, "{prompt}\nNegative prompt: {negative}\n");
        let _ = write!(text, "Template: {prompt}\nNegative template: {negative}\n");
    }
    if job.steps >= 0 {
        let _ = write!(text, "Steps: {}, ", job.steps);
    }
    let _ = write!(text, "Size: {}x{}, ", job.width, job.height);
    if job.sampler != "Default" {
        let _ = write!(text, "Sampler: {}, ", job.sampler);
    }
    let seed = job.seed + index.unwrap_or(0);
    let _ = write!(text, "Scheduler: EulerDiscreteScheduler, Seed: {seed}, CFG scale: {:?}, ", job.cfg_scale);
    let _ = write!(text, "CFG rescale: 0.0, ");
    let several = job.images() > 1;
    if several {
        let _ = write!(text, "Batch: {}x{}, ", job.n_iter, job.batch_size);
    }
    let (pipeline, operation) = match job.kind {
        Kind::Txt2img => ("StableDiffusionPipeline", "txt2img"),
        Kind::Img2img => ("StableDiffusionImg2ImgPipeline", "img2img"),
    };
    let model = model.rsplit('/').next().unwrap_or_default();
    let refined = if job.hires.is_some() { "; hires" } else { "" };
    let _ = write!(text, "App: SD.Next, Version: unknown, Pipeline: {pipeline}, ");
    let _ = write!(text, "Operations: {operation}{refined}, Model: {model}");
    if let Some(hires) = &job.hires {
        let force = if hires.force { "True" } else { "False" };
        let _ = write!(text, ", Refine: True, Hires force: {force}, Hires steps: {}", hires.steps);
        let _ = write!(text, ", Hires strength: {:?}, Hires sampler: {}", hires.strength, job.sampler);
    }
    if let Some(init) = &job.init {
        let _ = write!(text, ", Init image size: {}x{}", init.width, init.height);
        let hash = init.hash >> 32;
        let _ =
            write!(text, ", Init image hash: {hash:08x}, Denoising strength: {:?}", job.denoising_strength);
    }
    match index {
        Some(index) if several => {
            let batch = job.batch_size.max(1);
            let _ = write!(text, ", Index: {}x{}", index / batch + 1, index % batch + 1);
        }
        None => {
            let _ = write!(text, ", Grid: {}x{}", job.n_iter, job.batch_size);
        }
        Some(_) => {}
    }
    text
}
