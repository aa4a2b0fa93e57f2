//! From a client's body to a checked request.
//!
//! Every fault is reported at once, with a pointer each, which a derived deserialiser could not do: it stops at the
//! first.

use serde_json::{Map, Value};
use stepcast_shared::events::MAX_EVENT_BYTES;
use stepcast_shared::ids::{BackendId, Pool};
use stepcast_shared::job::{INPUT_PREFIX, JobRequest, Priority};
use stepcast_shared::problem::FieldError;

use crate::config::Limits;

/// Room that an event needs beside the request it repeats.
const EVENT_OVERHEAD: usize = 16 * 1024;
/// Deepest nesting of a body.
const MAX_DEPTH: usize = 64;
/// Longest mark of a client.
const MAX_LABEL_CHARS: usize = 128;
/// Longest name of a sampler or a checkpoint.
const MAX_NAME_CHARS: usize = 512;
/// Most renders of a job.
const MAX_ATTEMPTS: u32 = 20;
/// Longest deadline: 7 days, as long as events are kept.
const MAX_DEADLINE_SECONDS: u32 = 7 * 24 * 3600;

/// Reads a body; `pointer` says where it stands in the whole body (`""` for the root).
pub fn parse(body: &Value, pointer: &str, limits: &Limits) -> Result<JobRequest, Vec<FieldError>> {
    let Value::Object(fields) = body else {
        return Err(vec![FieldError::new(pointer, "this must be an object")]);
    };
    if is_deeper(body, MAX_DEPTH) {
        // What an envelope wraps once more must still be readable: serde_json stops at 127.
        return Err(vec![FieldError::new(pointer, format!("this is nested more than {MAX_DEPTH} deep"))]);
    }
    let mut reader = Reader { fields: fields.clone(), pointer, errors: Vec::new() };
    let request = reader.request(limits);
    reader.refuse_the_rest();
    reader.check_sizes(&request, limits);
    if reader.errors.is_empty() { Ok(request) } else { Err(reader.errors) }
}

/// Says that a request is too large for the events that will repeat it, if it is.
pub fn check_event_size(params: &str, pointer: &str) -> Result<(), FieldError> {
    let limit = MAX_EVENT_BYTES - EVENT_OVERHEAD;
    if params.len() <= limit {
        return Ok(());
    }
    let detail = format!("the request has {} bytes beside its images; the limit is {limit}", params.len());
    Err(FieldError::new(pointer, detail))
}

/// Takes fields out of a body and collects what is wrong with them.
struct Reader<'a> {
    fields: Map<String, Value>,
    pointer: &'a str,
    errors: Vec<FieldError>,
}

impl Reader<'_> {
    fn request(&mut self, limits: &Limits) -> JobRequest {
        let prompt = self.prompt("prompt", limits);
        if prompt.as_deref().is_none_or(|text| text.trim().is_empty()) && !self.has_error("prompt") {
            self.fault("prompt", "a prompt is required and may not be empty");
        }
        JobRequest {
            prompt: prompt.unwrap_or_default(),
            negative_prompt: self.prompt("negative_prompt", limits).unwrap_or_default(),
            steps: self.integer("steps", 20, 1, limits.max_steps),
            sampler_name: self.name("sampler_name"),
            cfg_scale: self.number("cfg_scale", 0.0, 100.0).unwrap_or(7.0),
            width: self.integer("width", 512, 8, limits.max_side),
            height: self.integer("height", 512, 8, limits.max_side),
            seed: self.seed(),
            batch_size: self.integer("batch_size", 1, 1, limits.max_images),
            n_iter: self.integer("n_iter", 1, 1, limits.max_images),
            denoising_strength: self.number("denoising_strength", 0.0, 1.0),
            init_images: self.images(limits),
            mask: self.string("mask"),
            control: self.control(),
            model: self.name("model"),
            priority: self.priority(),
            pool: self.slug::<Pool>("pool").unwrap_or_default(),
            label: self.label(),
            previews: self.boolean("previews", true),
            deadline_seconds: self.deadline(),
            max_attempts: self.integer("max_attempts", 3, 1, MAX_ATTEMPTS),
            backend: self.slug::<BackendId>("backend"),
            sdnext: self.sdnext(),
        }
    }

    /// Takes a field; absent and `null` are the same, as clients of SD.Next expect.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    fn fault(&mut self, name: &str, detail: impl Into<String>) {
        self.errors.push(FieldError::new(format!("{}/{}", self.pointer, escape(name)), detail));
    }

    fn has_error(&self, name: &str) -> bool {
        self.errors.iter().any(|error| error.pointer == format!("{}/{name}", self.pointer))
    }

    fn string(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => Some(text),
            other => {
                self.fault(name, format!("this must be a string, not {}", kind(&other)));
                None
            }
        }
    }

    fn prompt(&mut self, name: &str, limits: &Limits) -> Option<String> {
        let text = self.string(name)?;
        if text.len() > limits.max_prompt_bytes {
            let limit = limits.max_prompt_bytes;
            self.fault(name, format!("this has {} bytes; the limit is {limit}", text.len()));
            return None;
        }
        Some(text)
    }

    fn name(&mut self, name: &str) -> Option<String> {
        let text = self.string(name)?;
        if is_unfit(&text, MAX_NAME_CHARS) {
            self.fault(name, format!("this must have 1 to {MAX_NAME_CHARS} visible characters"));
            return None;
        }
        Some(text)
    }

    fn label(&mut self) -> Option<String> {
        let text = self.string("label")?;
        if is_unfit(&text, MAX_LABEL_CHARS) {
            self.fault("label", format!("this must have 1 to {MAX_LABEL_CHARS} visible characters"));
            return None;
        }
        Some(text)
    }

    fn integer(&mut self, name: &str, default: u32, least: u32, most: u32) -> u32 {
        let Some(value) = self.take(name) else { return default };
        match value.as_i64() {
            Some(number) if (i64::from(least)..=i64::from(most)).contains(&number) => {
                u32::try_from(number).expect("the range is within u32")
            }
            Some(number) => {
                self.fault(name, format!("{number} is out of range: {least} to {most}"));
                default
            }
            None if value.is_u64() => {
                self.fault(name, format!("{value} is out of range: {least} to {most}"));
                default
            }
            None => {
                self.fault(name, format!("this must be a whole number, not {}", kind(&value)));
                default
            }
        }
    }

    fn number(&mut self, name: &str, least: f64, most: f64) -> Option<f64> {
        let value = self.take(name)?;
        match value.as_f64() {
            Some(number) if (least..=most).contains(&number) => Some(number),
            Some(number) => {
                self.fault(name, format!("{number} is out of range: {least} to {most}"));
                None
            }
            None => {
                self.fault(name, format!("this must be a number, not {}", kind(&value)));
                None
            }
        }
    }

    fn boolean(&mut self, name: &str, default: bool) -> bool {
        match self.take(name) {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(other) => {
                self.fault(name, format!("this must be true or false, not {}", kind(&other)));
                default
            }
        }
    }

    fn seed(&mut self) -> i64 {
        let Some(value) = self.take("seed") else { return -1 };
        match value.as_i64() {
            Some(seed) if seed >= -1 => seed,
            _ => {
                self.fault("seed", "this must be a whole number, -1 (any) or more");
                -1
            }
        }
    }

    fn priority(&mut self) -> Priority {
        let Some(value) = self.take("priority") else { return Priority::Normal };
        serde_json::from_value(value).unwrap_or_else(|_| {
            self.fault("priority", "this must be `low`, `normal` or `high`");
            Priority::Normal
        })
    }

    fn slug<T: std::str::FromStr<Err: std::fmt::Display>>(&mut self, name: &str) -> Option<T> {
        let text = self.string(name)?;
        text.parse().map_err(|error: T::Err| self.fault(name, error.to_string())).ok()
    }

    fn deadline(&mut self) -> Option<u32> {
        self.fields.get("deadline_seconds").filter(|value| !value.is_null())?;
        Some(self.integer("deadline_seconds", 1, 1, MAX_DEADLINE_SECONDS))
    }

    fn images(&mut self, limits: &Limits) -> Vec<String> {
        let Some(value) = self.take("init_images") else { return Vec::new() };
        let Value::Array(items) = value else {
            self.fault("init_images", format!("this must be a list, not {}", kind(&value)));
            return Vec::new();
        };
        if items.len() > limits.max_inputs {
            let limit = limits.max_inputs;
            self.fault("init_images", format!("there are {} images; the limit is {limit}", items.len()));
            return Vec::new();
        }
        let mut images = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            match item {
                Value::String(text) => images.push(text),
                other => {
                    let detail = format!("this must be base64 or `{INPUT_PREFIX}<id>`, not {}", kind(&other));
                    self.errors
                        .push(FieldError::new(format!("{}/init_images/{index}", self.pointer), detail));
                }
            }
        }
        images
    }

    fn control(&mut self) -> Vec<Value> {
        match self.take("control") {
            None => Vec::new(),
            Some(Value::Array(units)) if units.is_empty() => units,
            // SD.Next's own endpoint for them answers 500 and 422 as recorded, so there is nothing to pass them to.
            Some(_) => {
                self.fault("control", "ControlNet units cannot be rendered yet");
                Vec::new()
            }
        }
    }

    fn sdnext(&mut self) -> Map<String, Value> {
        let fields = match self.take("sdnext") {
            None => return Map::new(),
            Some(Value::Object(fields)) => fields,
            Some(other) => {
                self.fault("sdnext", format!("this must be an object, not {}", kind(&other)));
                return Map::new();
            }
        };
        for name in fields.keys().filter(|name| OWN_FIELDS.contains(&name.as_str())) {
            let pointer = format!("{}/sdnext/{}", self.pointer, escape(name));
            self.errors.push(FieldError::new(pointer, "this belongs beside `sdnext`, not into it"));
        }
        fields
    }

    fn refuse_the_rest(&mut self) {
        for name in self.fields.keys() {
            let pointer = format!("{}/{}", self.pointer, escape(name));
            let detail = "there is no such field; what else SD.Next understands goes under `sdnext`";
            self.errors.push(FieldError::new(pointer, detail));
        }
    }

    fn check_sizes(&mut self, request: &JobRequest, limits: &Limits) {
        let pixels = u64::from(request.width) * u64::from(request.height);
        if pixels > limits.max_pixels {
            self.fault("width", format!("{pixels} pixels are more than the limit of {}", limits.max_pixels));
        }
        let images = u64::from(request.batch_size) * u64::from(request.n_iter);
        if images > u64::from(limits.max_images) {
            self.fault("n_iter", format!("{images} images are more than the limit of {}", limits.max_images));
        }
        if request.mask.is_some() && request.init_images.is_empty() {
            self.fault("mask", "a mask needs `init_images`");
        }
    }
}

/// Fields that have a place of their own, under SD.Next's name or ours, and so may not hide under `sdnext`.
const OWN_FIELDS: &[&str] = &[
    "prompt",
    "negative_prompt",
    "steps",
    "sampler_name",
    "cfg_scale",
    "width",
    "height",
    "seed",
    "batch_size",
    "n_iter",
    "denoising_strength",
    "init_images",
    "mask",
    "control",
    "sd_model_checkpoint",
    "send_images",
];

fn is_deeper(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth == 0 || items.iter().any(|item| is_deeper(item, depth - 1)),
        Value::Object(fields) => depth == 0 || fields.values().any(|field| is_deeper(field, depth - 1)),
        _ => false,
    }
}

/// Whether a text is no name: empty, too long, or with characters that neither a page nor PostgreSQL can show.
fn is_unfit(text: &str, longest: usize) -> bool {
    text.is_empty() || text.chars().count() > longest || text.chars().any(char::is_control)
}

/// A name as a token of a JSON pointer (RFC 6901, section 3).
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests;
