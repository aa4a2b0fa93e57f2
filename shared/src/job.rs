//! What a client asks for: one flat body with SD.Next's own names and defaults, and Stepcast's own fields beside them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::ids::{BackendId, Pool};

/// How urgent a waiting job is.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
    JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After everything else.
    Low,
    /// In turn.
    #[default]
    Normal,
    /// Before everything else.
    High,
}

/// A job as accepted: every field checked, input images replaced by `input:<id>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobRequest {
    /// What to paint; not empty.
    pub prompt: String,
    /// What to leave out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub negative_prompt: String,
    /// Sampling steps.
    #[serde(default = "default_steps")]
    pub steps: u32,
    /// Sampler, by SD.Next's name; absent means the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampler_name: Option<String>,
    /// How closely to follow the prompt.
    #[serde(default = "default_cfg_scale")]
    pub cfg_scale: f64,
    /// Pixels; SD.Next rounds down to a multiple of 8.
    #[serde(default = "default_side")]
    pub width: u32,
    /// Pixels; SD.Next rounds down to a multiple of 8.
    #[serde(default = "default_side")]
    pub height: u32,
    /// -1 lets the server choose.
    #[serde(default = "default_seed")]
    pub seed: i64,
    /// Images made at once.
    #[serde(default = "one")]
    pub batch_size: u32,
    /// Batches made one after another.
    #[serde(default = "one")]
    pub n_iter: u32,
    /// Image to image: how much to change, 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denoising_strength: Option<f64>,
    /// Image to image: the images to begin from, as `input:<id>` (on submit also base64).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init_images: Vec<String>,
    /// Image to image: what to repaint, as `input:<id>` (on submit also base64).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask: Option<String>,
    /// `ControlNet` units, passed on as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub control: Vec<Value>,
    /// Checkpoint, by SD.Next's title; absent means the one that is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How urgent.
    #[serde(default)]
    pub priority: Priority,
    /// Which backends may take it.
    #[serde(default)]
    pub pool: Pool,
    /// The client's own mark, to filter by; up to 128 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Whether previews may be decoded while somebody watches.
    #[serde(default = "yes")]
    pub previews: bool,
    /// Seconds from accept within which the job must have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<u32>,
    /// How many renders may be tried.
    #[serde(default = "default_max_attempts")]
    pub max_attempts: u32,
    /// One backend by id, where only that one will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<BackendId>,
    /// Whatever else SD.Next understands, sent verbatim.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub sdnext: Map<String, Value>,
}

impl JobRequest {
    /// Number of images that a complete answer holds.
    pub fn images(&self) -> u32 {
        self.batch_size.saturating_mul(self.n_iter)
    }

    /// Whether it begins from an image.
    pub fn is_img2img(&self) -> bool {
        !self.init_images.is_empty()
    }

    /// Ids of the stored input images that it refers to.
    pub fn inputs(&self) -> impl Iterator<Item = &str> {
        self.init_images
            .iter()
            .chain(self.mask.as_ref())
            .filter_map(|reference| reference.strip_prefix(INPUT_PREFIX))
    }
}

/// What a reference to a stored input image begins with.
pub const INPUT_PREFIX: &str = "input:";

/// Key of a stored input image in the object store.
pub fn input_key(input_id: &str) -> String {
    format!("inputs/{input_id}")
}

fn default_steps() -> u32 {
    20
}

fn default_cfg_scale() -> f64 {
    7.0
}

fn default_side() -> u32 {
    512
}

fn default_seed() -> i64 {
    -1
}

fn default_max_attempts() -> u32 {
    3
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}
