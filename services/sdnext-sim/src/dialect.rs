//! Which kind of server is stood in for.
//!
//! SD.Next's behaviour was recorded. That of the other two was read in their sources, not run:
//! `AUTOMATIC1111/stable-diffusion-webui` (`modules/progress.py`, `modules/shared_state.py`, `modules/api/api.py`,
//! `modules/processing.py`, `modules/sd_samplers_common.py`) and `lllyasviel/stable-diffusion-webui-forge` (the same
//! paths). Nothing here is their code.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Map, Value, json};

use crate::answers::{self, fixed, json_response};

/// A family of servers behind the same paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// SD.Next: one global state, stages that overwrite each other, no idea of tasks.
    #[default]
    Sdnext,
    /// AUTOMATIC1111's web UI: batches are counted, tasks have ids.
    A1111,
    /// Forge: as A1111, with other options and barer errors.
    Forge,
}

impl Dialect {
    /// Whether the server knows tasks by id and counts its batches.
    pub(crate) fn has_tasks(self) -> bool {
        self != Self::Sdnext
    }

    /// What the options hold at start.
    pub(crate) fn options(self) -> Map<String, Value> {
        let own = match self {
            Self::Sdnext => fixed("options").clone(),
            Self::A1111 => json!({}),
            Self::Forge => json!({
                "forge_preset": "sd",
                "forge_unet_storage_dtype": "Automatic",
                "forge_inference_memory": 1024.0,
                "forge_additional_modules": [],
            }),
        };
        let mut options = own.as_object().cloned().unwrap_or_default();
        if self.has_tasks() {
            let common = json!({
                "samples_format": "png",
                "img2img_fix_steps": false,
                "live_previews_enable": true,
                "live_previews_image_format": "png",
                "CLIP_stop_at_last_layers": 1,
                "sd_checkpoint_hash": "",
            });
            options.extend(common.as_object().cloned().unwrap_or_default());
        }
        options
    }

    /// The body of `GET /sdapi/v1/cmd-flags`, shortened.
    pub(crate) fn flags(self) -> Value {
        let mut flags =
            json!({"api": true, "nowebui": false, "listen": false, "api_auth": null, "port": null});
        if self == Self::Forge {
            flags["forge_ref_a1111_home"] = Value::Null;
        }
        flags
    }

    /// What an exception that means a status code becomes. Forge has A1111's handler commented out.
    pub(crate) fn http_exception(self, status: StatusCode, detail: &str) -> Response {
        match self {
            Self::Sdnext => answers::http_exception(status, detail),
            Self::A1111 => json_response(
                status,
                &json!({"error": "HTTPException", "detail": detail, "body": "", "errors": ""}),
            ),
            Self::Forge => answers::framework(status, detail),
        }
    }

    /// What any other exception becomes.
    pub(crate) fn exception(self, name: &str, message: &str) -> Response {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        match self {
            Self::Sdnext => answers::exception(name, message),
            Self::A1111 => {
                json_response(status, &json!({"error": name, "detail": "", "body": "", "errors": message}))
            }
            Self::Forge => {
                let text = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
                (status, text, "Internal Server Error").into_response()
            }
        }
    }

    /// Fills in where the defaults differ from SD.Next's schema, which `fields` were read by. Answers the task's id.
    pub(crate) fn adapt(
        self,
        is_img2img: bool,
        fields: &mut Map<String, Value>,
        body: &[u8],
    ) -> Option<String> {
        let sent = serde_json::from_slice::<Value>(body).ok().filter(|_| self.has_tasks())?;
        let defaults = [("width", json!(512)), ("height", json!(512)), ("steps", json!(50))];
        let strength = is_img2img.then(|| ("denoising_strength", json!(0.75)));
        for (name, default) in defaults.into_iter().chain(strength) {
            if sent.get(name).is_none_or(Value::is_null) {
                fields.insert(name.to_owned(), default);
            }
        }
        sent["force_task_id"].as_str().map(str::to_owned)
    }
}
