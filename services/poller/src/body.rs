//! From a checked request to the body that SD.Next reads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use object_store::{ObjectStore, ObjectStoreExt as _};
use serde_json::{Map, Value, json};
use stepcast_shared::job::{INPUT_PREFIX, JobRequest, input_key};

use crate::dialect::Dialect;
use crate::plan::{Img2Img, ModelChange, Plan, PlanInput, Size};

/// What is posted, and what to expect of it.
#[derive(Debug)]
pub struct Render {
    /// Where it is posted.
    pub path: &'static str,
    /// JSON.
    pub body: Bytes,
    /// What it goes through.
    pub plan: Plan,
    /// Whether the answer carries the images.
    pub images_sent: bool,
}

/// Makes the body of a request, with its input images fetched. `save_images` makes the server keep what it renders,
/// so that it can be had after the answer is lost. The dialect is that of the server, and the id names the task there.
///
/// Errors if an input image is not in the store.
pub async fn render(
    request: &JobRequest,
    loaded_model: Option<&str>,
    save_images: bool,
    (dialect, task_id): (Dialect, &str),
    store: &dyn ObjectStore,
) -> object_store::Result<Render> {
    let mut body = fields(request);
    if save_images {
        body.insert("save_images".to_owned(), true.into());
    }
    let mut source = None;
    let mut images = Vec::new();
    for reference in &request.init_images {
        let bytes = fetch(reference, store).await?;
        source = source.or_else(|| size_of(&bytes));
        images.push(Value::from(STANDARD.encode(bytes)));
    }
    if !images.is_empty() {
        body.insert("init_images".to_owned(), images.into());
    }
    if let Some(mask) = &request.mask {
        body.insert("mask".to_owned(), STANDARD.encode(fetch(mask, store).await?).into());
    }
    dialect.adapt_body(&mut body, task_id);
    let body = Value::Object(body);
    let img2img = request.is_img2img();
    let mut input = PlanInput::from_body(&body, img2img);
    if let Some(model) = &request.model
        && loaded_model != Some(model)
    {
        input.model = ModelChange::Loads;
    }
    if let Some(img2img) = &mut input.img2img {
        *img2img = Img2Img { source, ..img2img.clone() };
    }
    dialect.adapt_plan(&mut input);
    let images_sent = body.get("send_images").and_then(Value::as_bool).unwrap_or(true);
    Ok(Render {
        path: if img2img { "/sdapi/v1/img2img" } else { "/sdapi/v1/txt2img" },
        body: body.to_string().into(),
        plan: Plan::new(&input),
        images_sent,
    })
}

/// The plain fields: what the client said beside its images. Ours stand above what came verbatim.
fn fields(request: &JobRequest) -> Map<String, Value> {
    let mut body = request.sdnext.clone();
    let mut set = |name: &str, value: Value| {
        body.insert(name.to_owned(), value);
    };
    set("prompt", json!(request.prompt));
    set("negative_prompt", json!(request.negative_prompt));
    set("steps", json!(request.steps));
    set("cfg_scale", json!(request.cfg_scale));
    set("width", json!(request.width));
    set("height", json!(request.height));
    set("seed", json!(request.seed));
    set("batch_size", json!(request.batch_size));
    set("n_iter", json!(request.n_iter));
    set("send_images", json!(true));
    if let Some(sampler) = &request.sampler_name {
        set("sampler_name", json!(sampler));
    }
    if let Some(strength) = request.denoising_strength {
        set("denoising_strength", json!(strength));
    }
    // The checkpoint is switched within the job's own request: the checkpoint endpoint takes no lock and would kill
    // whatever runs.
    if let Some(model) = &request.model {
        set("sd_model_checkpoint", json!(model));
    }
    body
}

async fn fetch(reference: &str, store: &dyn ObjectStore) -> object_store::Result<Bytes> {
    let id = reference.strip_prefix(INPUT_PREFIX).unwrap_or(reference);
    store.get(&input_key(id).into()).await?.bytes().await
}

fn size_of(bytes: &[u8]) -> Option<Size> {
    let size = imagesize::blob_size(bytes).ok()?;
    Some(Size { width: u32::try_from(size.width).ok()?, height: u32::try_from(size.height).ok()? })
}
