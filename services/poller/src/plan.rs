//! What a request is expected to go through, derived from its plain numbers before anything runs.
//!
//! SD.Next reports one sampling pass at a time and never says how many there will be, so the plan is what turns
//! "step 3 of 12" into "step 15 of 36". It also says what the answer must hold to count as a success.

use serde_json::Value;

/// Width and height that the server uses for 0, as recorded.
const DEFAULT_EDGE: u32 = 1024;
/// Strength of denoising that A1111 and Forge use where none is given (`modules/processing.py`).
const DEFAULT_STRENGTH: f64 = 0.75;
/// Passes beyond this are not laid out one by one; a request like that is over every sensible limit.
const MAX_ITERATIONS: u32 = 1_000;

/// The numbers of a request that decide what it goes through.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanInput {
    /// Steps of the first pass.
    pub steps: u32,
    /// Iterations, one after another.
    pub n_iter: u32,
    /// Images rendered at once in each iteration.
    pub batch_size: u32,
    /// Requested width in pixels; 0 is the server's default.
    pub width: u32,
    /// Requested height in pixels; 0 is the server's default.
    pub height: u32,
    /// Second pass, if any.
    pub hires: Option<Hires>,
    /// Image to image, if it is that.
    pub img2img: Option<Img2Img>,
    /// Whether passes of a detailer follow the second pass.
    pub detailer: bool,
    /// Whether the checkpoint may have to be changed.
    pub model: ModelChange,
    /// Whether the size of the images follows from the numbers above. False where scripts or extensions may change it;
    /// then any size is right, and a preview handed out as an image can only be told by the interrupt flag.
    pub exact_size: bool,
}

/// The second pass of a request.
#[derive(Clone, Debug, PartialEq)]
pub struct Hires {
    /// Steps of the second pass; 0 means as many as the first.
    pub steps: u32,
    /// Factor to the first pass, used where neither edge is given.
    pub scale: f64,
    /// Width to resize to, 0 to follow the height or the scale.
    pub resize_x: u32,
    /// Height to resize to, 0 to follow the width or the scale.
    pub resize_y: u32,
    /// SD.Next's `hr_resize_mode`: 0, its default, runs the second pass without resizing at all, as recorded.
    /// [`None`] for servers that have no such field (A1111, Forge), which always resize.
    pub resize_mode: Option<u32>,
}

/// The first image of an image-to-image request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Img2Img {
    /// Strength of denoising. SD.Next runs all steps whatever it is, as recorded; A1111 and Forge run this share.
    pub denoising_strength: Option<f64>,
    /// Whether only that share of the steps runs (A1111, Forge).
    pub shortens: bool,
    /// Size of the image, where known: SD.Next keeps it unless a resize mode is given.
    pub source: Option<Size>,
}

/// What a request does to the loaded checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModelChange {
    /// The checkpoint is loaded already.
    #[default]
    None,
    /// The checkpoint is loaded first, and stays.
    Loads,
    /// The checkpoint is loaded first, and the earlier one loaded again afterwards (`override_settings`).
    LoadsAndRestores,
}

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// What a request goes through, and what it should yield.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Sampling passes in order.
    pub passes: Vec<Pass>,
    /// Images that the answer should hold, grids not counted.
    pub images: u32,
    /// Sizes that an image of the answer may have; empty if any is right.
    pub sizes: Vec<Size>,
    /// Images rendered at once.
    pub batch_size: u32,
    /// Whether a detailer follows.
    pub detailer: bool,
    /// What happens to the checkpoint.
    pub model: ModelChange,
}

/// What an answer must hold to count as a success.
#[derive(Clone, Debug, PartialEq)]
pub struct Expected {
    /// Images, grids not counted.
    pub images: usize,
    /// Sizes that count as right; empty if any does.
    pub sizes: Vec<Size>,
    /// False where the request says `send_images: false`: then no image is fine.
    pub images_sent: bool,
}

/// One sampling pass over one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Pass {
    /// Number of the first image that this pass works on, from 1.
    pub image: u32,
    /// First or second pass.
    pub kind: PassKind,
    /// Steps expected, at least 1.
    pub steps: u32,
    /// Megapixels worked on: one image times the batch.
    pub megapixels: f64,
}

/// Kind of a sampling pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassKind {
    /// From noise or from the given image.
    Sampling,
    /// Over the result of the first.
    Hires,
}

impl Default for PlanInput {
    /// SD.Next's own defaults, as its schema has them.
    fn default() -> Self {
        Self {
            steps: 20,
            n_iter: 1,
            batch_size: 1,
            width: DEFAULT_EDGE,
            height: DEFAULT_EDGE,
            hires: None,
            img2img: None,
            detailer: false,
            model: ModelChange::None,
            exact_size: true,
        }
    }
}

impl PlanInput {
    /// Reads the body that is about to be posted, with SD.Next's names and defaults.
    ///
    /// A body says neither what is loaded nor how large a given image is, nor which dialect the server speaks:
    /// `model` is left at [`ModelChange::None`], `source` at [`None`], and `resize_mode` at SD.Next's meaning. The
    /// caller, who knows, sets them.
    pub fn from_body(body: &Value, img2img: bool) -> Self {
        let defaults = Self::default();
        let number = |name: &str, default: u32| body.get(name).and_then(as_count).unwrap_or(default);
        let flag = |name: &str| body.get(name).and_then(Value::as_bool).unwrap_or_default();
        let hires = flag("enable_hr").then(|| Hires {
            steps: number("hr_second_pass_steps", 0),
            scale: body.get("hr_scale").and_then(Value::as_f64).unwrap_or(2.0),
            resize_x: number("hr_resize_x", 0),
            resize_y: number("hr_resize_y", 0),
            resize_mode: Some(
                match (number("hr_resize_mode", 0), body.get("hr_upscaler").and_then(Value::as_str)) {
                    // An upscaler of that name leaves the size alone; mode 5 asks for none.
                    (mode, Some("None")) if mode != 5 => 0,
                    (mode, _) => mode,
                },
            ),
        });
        let img2img = img2img.then(|| Img2Img {
            denoising_strength: body.get("denoising_strength").and_then(Value::as_f64),
            ..Img2Img::default()
        });
        // Each of these can hand back images of another size than the request names.
        let scripted = body.get("script_name").and_then(Value::as_str).is_some_and(|name| !name.is_empty())
            || body
                .get("alwayson_scripts")
                .is_some_and(|scripts| scripts.as_object().is_some_and(|s| !s.is_empty()))
            || ["resize_mode_before", "resize_mode_after"].iter().any(|name| number(name, 0) > 0)
            || ["scale_by", "scale_by_before", "scale_by_after"].iter().any(|name| {
                body.get(name).and_then(Value::as_f64).is_some_and(|scale| (scale - 1.0).abs() > 1e-6)
            });
        Self {
            steps: number("steps", defaults.steps),
            n_iter: number("n_iter", defaults.n_iter),
            batch_size: number("batch_size", defaults.batch_size),
            width: number("width", defaults.width),
            height: number("height", defaults.height),
            hires,
            img2img,
            detailer: flag("detailer_enabled"),
            model: ModelChange::None,
            exact_size: !scripted,
        }
    }
}

impl Plan {
    /// Lays out the passes of a request. Counts of 0 are laid out as 1, so there is always a pass to watch.
    pub fn new(input: &PlanInput) -> Self {
        let batch_size = input.batch_size.max(1);
        let iterations = input.n_iter.clamp(1, MAX_ITERATIONS);
        let base = Size { width: edge(input.width), height: edge(input.height) };
        let target = input.hires.as_ref().map(|hires| hires.target(base));
        let steps = input.img2img.as_ref().map_or(input.steps, |img2img| img2img.steps(input.steps)).max(1);

        let mut passes = Vec::new();
        for iteration in 0..iterations {
            let image = iteration.saturating_mul(batch_size).saturating_add(1);
            let megapixels = |size: Size| size.megapixels() * f64::from(batch_size);
            passes.push(Pass { image, kind: PassKind::Sampling, steps, megapixels: megapixels(base) });
            if let (Some(hires), Some(target)) = (&input.hires, target) {
                let steps = if hires.steps == 0 { steps } else { hires.steps };
                passes.push(Pass { image, kind: PassKind::Hires, steps, megapixels: megapixels(target) });
            }
        }
        let sizes = if input.exact_size { acceptable(input, base, target) } else { Vec::new() };
        Self {
            passes,
            images: iterations.saturating_mul(batch_size),
            sizes,
            batch_size,
            detailer: input.detailer,
            model: input.model,
        }
    }

    /// What the answer must hold. `images_sent` is false where the request says `send_images: false`.
    pub fn expected(&self, images_sent: bool) -> Expected {
        Expected { images: self.images as usize, sizes: self.sizes.clone(), images_sent }
    }

    /// Steps of all passes together.
    pub fn total_steps(&self) -> u32 {
        self.passes.iter().fold(0, |sum, pass| sum.saturating_add(pass.steps))
    }
}

impl Size {
    /// Millions of pixels.
    pub fn megapixels(self) -> f64 {
        f64::from(self.width) * f64::from(self.height) / 1e6
    }
}

impl Hires {
    /// Size after the second pass: SD.Next's rule, where one given edge leads and the ratio gives the other.
    fn target(&self, base: Size) -> Size {
        if self.resize_mode == Some(0) {
            return base;
        }
        let ratio = f64::from(base.width) / f64::from(base.height);
        let (width, height) = match (self.resize_x, self.resize_y) {
            (0, 0) => (scaled(base.width, self.scale), scaled(base.height, self.scale)),
            (x, 0) => (x, scaled(x, 1.0 / ratio)),
            (0, y) => (scaled(y, ratio), y),
            (x, y) => (x, y),
        };
        Size { width: width.max(8), height: height.max(8) }
    }
}

impl Img2Img {
    fn steps(&self, steps: u32) -> u32 {
        match self.denoising_strength {
            // The share is cut off, and the step that it begins with comes on top.
            strength if self.shortens => {
                scaled(steps, strength.unwrap_or(DEFAULT_STRENGTH).clamp(0.0, 0.999)).saturating_add(1)
            }
            _ => steps,
        }
    }
}

/// Sizes that count as right. Latents hold multiples of 8, image upscalers need not, and an image-to-image request
/// without a resize mode keeps the size of its source: each of these is a whole image, and none is a preview.
fn acceptable(input: &PlanInput, base: Size, target: Option<Size>) -> Vec<Size> {
    let mut sizes = Vec::new();
    let mut add = |size: Size| {
        for size in [size, Size { width: edge(size.width), height: edge(size.height) }] {
            if !sizes.contains(&size) {
                sizes.push(size);
            }
        }
    };
    add(target.unwrap_or(base));
    if let Some(source) = input.img2img.as_ref().and_then(|img2img| img2img.source) {
        add(source);
    }
    sizes
}

/// What the server makes of a requested edge: 0 is its default, and the rest rounds down to a multiple of 8.
fn edge(pixels: u32) -> u32 {
    if pixels == 0 { DEFAULT_EDGE } else { (pixels - pixels % 8).max(8) }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float-to-integer cast saturates"
)]
fn scaled(pixels: u32, factor: f64) -> u32 {
    // The server cuts fractions off; the tiny addition keeps 1.1 * 640 from losing a whole pixel to rounding.
    (f64::from(pixels) * factor + 1e-6) as u32
}

fn as_count(value: &Value) -> Option<u32> {
    // A negative number is let through by the server and ends in no image; 0 keeps the plan sane meanwhile.
    value.as_i64().map(|count| u32::try_from(count.max(0)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plan(body: &Value) -> Plan {
        Plan::new(&PlanInput::from_body(body, false))
    }

    fn size(width: u32, height: u32) -> Size {
        Size { width, height }
    }

    #[test]
    fn a_plain_request_is_one_pass() {
        let plan = plan(&json!({"steps": 40, "width": 512, "height": 512}));
        assert_eq!(
            plan.passes,
            [Pass { image: 1, kind: PassKind::Sampling, steps: 40, megapixels: 0.262_144 }]
        );
        assert_eq!((plan.images, plan.sizes.as_slice()), (1, [size(512, 512)].as_slice()));
    }

    #[test]
    fn an_empty_request_has_the_servers_defaults() {
        let plan = plan(&json!({}));
        assert_eq!((plan.total_steps(), plan.sizes[0]), (20, size(1024, 1024)));
    }

    #[test]
    fn sizes_round_down_to_multiples_of_eight_and_zero_is_1024() {
        assert_eq!(plan(&json!({"width": 257, "height": 250})).sizes, [size(256, 248)]);
        assert_eq!(plan(&json!({"width": 0, "height": 256})).sizes, [size(1024, 256)]);
    }

    #[test]
    fn iterations_and_batches_are_passes_and_images() {
        let plan = plan(&json!({"steps": 8, "n_iter": 2, "batch_size": 2, "width": 512, "height": 512}));
        assert_eq!(plan.images, 4);
        assert_eq!(plan.passes.iter().map(|pass| pass.image).collect::<Vec<_>>(), [1, 3]);
        assert!((plan.passes[0].megapixels - 2.0 * 0.262_144).abs() < 1e-9);
    }

    #[test]
    fn hires_adds_a_pass_and_resizes_only_when_told() {
        let body = |mode: u32| json!({"steps": 10, "width": 384, "height": 384, "enable_hr": true, "hr_scale": 1.5, "hr_resize_mode": mode});
        assert_eq!(plan(&body(0)).sizes, [size(384, 384)]);
        let resized = plan(&body(1));
        assert_eq!(resized.sizes, [size(576, 576)]);
        assert_eq!(resized.passes[1].kind, PassKind::Hires);
        assert_eq!(resized.passes[1].steps, 10, "0 steps mean as many as the first pass");
    }

    #[test]
    fn one_given_edge_leads_the_other() {
        let body =
            json!({"width": 512, "height": 768, "enable_hr": true, "hr_resize_x": 1000, "hr_resize_mode": 1});
        assert_eq!(plan(&body).sizes, [size(1000, 1500), size(1000, 1496)]);
    }

    #[test]
    fn image_to_image_runs_all_steps_here_and_a_share_elsewhere() {
        let mut input = PlanInput::from_body(&json!({"steps": 20, "denoising_strength": 0.5}), true);
        assert_eq!(Plan::new(&input).total_steps(), 20);
        let img2img = input.img2img.as_mut().expect("asked for");
        img2img.shortens = true;
        img2img.source = Some(size(640, 480));
        assert_eq!(Plan::new(&input).total_steps(), 11);
        assert!(Plan::new(&input).sizes.contains(&size(640, 480)));
    }

    #[test]
    fn scripts_make_the_size_unknown() {
        assert!(plan(&json!({"script_name": "xyz grid"})).sizes.is_empty());
        assert!(plan(&json!({"scale_by": 2})).sizes.is_empty());
    }

    #[test]
    fn absurd_numbers_stay_bounded() {
        let plan = plan(&json!({"steps": -5, "n_iter": u32::MAX, "batch_size": u32::MAX, "width": -64}));
        assert_eq!(plan.passes.len(), 1_000);
        assert!(plan.passes.iter().all(|pass| pass.steps == 1));
        assert!(plan.total_steps() >= 1_000);
    }
}
