//! A generation request made ready to run: defaults filled in, sizes rounded, seeds drawn.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use axum::http::StatusCode;
use axum::response::Response;
use rand::Rng as _;
use serde_json::{Map, Value, json};

use crate::answers::{self, json_response};
use crate::dialect::Dialect;
use crate::encode::{Format, decode_base64};
use crate::requests::Kind;

/// The largest side that is drawn; above it memory runs out.
pub(crate) const LARGEST: i64 = 8192;

/// The image that an img2img job starts from.
#[derive(Clone, Debug)]
pub(crate) struct Init {
    pub(crate) hash: u64,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) kind: Kind,
    /// Null passes validation and fails later.
    pub(crate) prompt: Option<String>,
    pub(crate) negative_prompt: String,
    pub(crate) seed: i64,
    pub(crate) subseed: i64,
    pub(crate) width: i64,
    pub(crate) height: i64,
    pub(crate) steps: i64,
    /// Steps that the first pass really runs.
    pub(crate) sampled_steps: i64,
    pub(crate) n_iter: i64,
    pub(crate) batch_size: i64,
    pub(crate) sampler: &'static str,
    pub(crate) cfg_scale: f64,
    pub(crate) denoising_strength: f64,
    pub(crate) hires: Option<Hires>,
    pub(crate) send_images: bool,
    pub(crate) save_images: bool,
    pub(crate) format: Option<Format>,
    /// The model to switch to for good.
    pub(crate) model: Option<String>,
    /// The model to switch to for this job.
    pub(crate) model_override: Option<String>,
    /// Whether the options go back to what they were.
    pub(crate) restores: bool,
    pub(crate) init: Option<Init>,
    /// What the answer echoes.
    pub(crate) parameters: Value,
}

#[derive(Clone, Debug)]
pub(crate) struct Hires {
    pub(crate) steps: i64,
    pub(crate) strength: f64,
    pub(crate) force: bool,
    /// Whether there is a second sampling pass at all.
    pub(crate) sampled: bool,
    /// Size after it; the recorded requests, which name no resize mode, keep that of the first pass.
    pub(crate) width: i64,
    pub(crate) height: i64,
}

impl Job {
    /// Checks what the server checks before it takes the lock.
    pub(crate) fn new(
        kind: Kind,
        mut fields: Map<String, Value>,
        dialect: Dialect,
    ) -> Result<Self, Box<Response>> {
        let text = |name: &str| fields[name].as_str().map(str::to_owned);
        let whole = |name: &str, default: i64| fields[name].as_i64().unwrap_or(default);
        let real = |name: &str, default: f64| fields[name].as_f64().unwrap_or(default);
        let flag = |name: &str, default: bool| fields[name].as_bool().unwrap_or(default);

        let init =
            if kind == Kind::Img2img { Some(init_image(&fields["init_images"], dialect)?) } else { None };
        let sampler = fields["sampler_name"].as_str().unwrap_or("Default");
        let Some(sampler) = answers::sampler(sampler) else {
            return Err(Box::new(dialect.http_exception(StatusCode::NOT_FOUND, "Sampler not found")));
        };
        let size = |name: &str| match whole(name, 0) {
            0 => 1024,
            side if side < 0 => side,
            side => (side / 8 * 8).max(8),
        };
        let (width, height) = (size("width"), size("height"));
        let steps = whole("steps", 20);
        let overrides = &fields["override_settings"];
        let format = fields["samples_format"].as_str().or(overrides["samples_format"].as_str());
        let mut rng = rand::rng();
        let mut random = |sent: i64| if sent < 0 { i64::from(rng.random::<u32>()) } else { sent };
        let mut job = Self {
            kind,
            prompt: text("prompt"),
            negative_prompt: text("negative_prompt").unwrap_or_default(),
            seed: random(whole("seed", -1)),
            subseed: random(whole("subseed", -1)),
            width,
            height,
            steps,
            sampled_steps: steps,
            n_iter: whole("n_iter", 1),
            batch_size: whole("batch_size", 1),
            sampler,
            cfg_scale: real("cfg_scale", 6.0),
            denoising_strength: real("denoising_strength", 0.3),
            hires: None,
            send_images: flag("send_images", true),
            save_images: flag("save_images", false),
            format: format.map(Format::from_option),
            model: text("sd_model_checkpoint"),
            model_override: overrides["sd_model_checkpoint"].as_str().map(str::to_owned),
            restores: flag("override_settings_restore_afterwards", true),
            init,
            parameters: Value::Null,
        };
        if dialect.has_tasks() && kind == Kind::Img2img {
            // As read: only the share of the steps that the strength asks for, and one more.
            job.sampled_steps = share(steps, job.denoising_strength.min(0.999)) + 1;
        }
        if flag("enable_hr", false) {
            let force = flag("hr_force", false);
            let second = whole("hr_second_pass_steps", 0);
            let (scale, mode) = (real("hr_scale", 2.0), whole("hr_resize_mode", 0));
            // Only SD.Next asks how to resize; the others always do, and always sample.
            let mode = if dialect.has_tasks() { 1 } else { mode };
            let resized = |length: i64, fixed: i64| match (mode, fixed) {
                (0, _) => length,
                (_, fixed) if fixed > 0 => fixed / 8 * 8,
                _ => scaled(length, scale),
            };
            job.hires = Some(Hires {
                steps: if second > 0 { second } else { steps },
                strength: real("hr_denoising_strength", 0.0),
                force,
                sampled: dialect.has_tasks()
                    || force
                    || text("hr_upscaler").is_some_and(|name| name.starts_with("Latent")),
                width: resized(width, whole("hr_resize_x", 0)),
                height: resized(height, whole("hr_resize_y", 0)),
            });
        }
        // Images are not echoed, unlike in the 422.
        for name in ["init_images", "mask"] {
            fields.insert(name.to_owned(), Value::Null);
        }
        job.parameters = Value::Object(fields);
        Ok(job)
    }

    pub(crate) fn prompt(&self) -> &str {
        self.prompt.as_deref().unwrap_or_default()
    }

    /// Images that a whole run makes.
    pub(crate) fn images(&self) -> i64 {
        self.n_iter.max(0) * self.batch_size.max(0)
    }

    /// Sampling passes of a whole run.
    pub(crate) fn passes(&self) -> u32 {
        let each = if self.hires.as_ref().is_some_and(|hires| hires.sampled) { 2 } else { 1 };
        u32::try_from(self.n_iter.max(0)).unwrap_or(0) * each
    }

    /// Whether the pipeline can run at this size at all.
    pub(crate) fn drawable(&self) -> bool {
        let fits = |side: i64| (1..=LARGEST).contains(&side);
        let hires = self.hires.as_ref().is_none_or(|hires| fits(hires.width) && fits(hires.height));
        fits(self.width) && fits(self.height) && hires && self.batch_size <= 64
    }

    pub(crate) fn mix(&self) -> u64 {
        self.init.as_ref().map_or(0, |init| init.hash)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "steps are small whole numbers")]
fn share(steps: i64, strength: f64) -> i64 {
    (steps as f64 * strength) as i64
}

#[expect(clippy::cast_possible_truncation, reason = "sizes are small whole numbers")]
fn scaled(length: i64, scale: f64) -> i64 {
    (length as f64 * scale) as i64 / 8 * 8
}

fn init_image(images: &Value, dialect: Dialect) -> Result<Init, Box<Response>> {
    let first = images.as_array().and_then(|images| images.first());
    let Some(first) = first else {
        if dialect.has_tasks() {
            return Err(Box::new(dialect.http_exception(StatusCode::NOT_FOUND, "Init image not found")));
        }
        let body = json!({"error": "Init image is none"});
        return Err(Box::new(json_response(StatusCode::BAD_REQUEST, &body)));
    };
    let bytes = first.as_str().and_then(decode_base64);
    let size = bytes.as_deref().and_then(|bytes| imagesize::blob_size(bytes).ok());
    let (Some(bytes), Some(size)) = (bytes, size) else {
        return Err(Box::new(
            dialect.http_exception(StatusCode::INTERNAL_SERVER_ERROR, "Invalid encoded image"),
        ));
    };
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    Ok(Init { hash: hasher.finish() | 1, width: size.width, height: size.height })
}
