//! What kind of server a backend is, and what differs between the kinds.
//!
//! SD.Next was recorded. A1111 and Forge were read in their sources, not run:
//! `AUTOMATIC1111/stable-diffusion-webui` (A1111 below) and `lllyasviel/stable-diffusion-webui-forge` (Forge), each
//! named with its path where a rule rests on it. Most of what is asked of a server is the same for all three; an enum
//! with the few differences says so better than three clients would.

use serde_json::{Map, Value, json};

use crate::plan::PlanInput;

/// A family of servers behind the same paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// SD.Next: no idea of tasks; progress is the server's.
    #[default]
    Sdnext,
    /// AUTOMATIC1111's web UI: a task can be named, and asked for by its name.
    A1111,
    /// Forge: as A1111, with barer errors.
    Forge,
}

impl Dialect {
    /// Its name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sdnext => "sdnext",
            Self::A1111 => "a1111",
            Self::Forge => "forge",
        }
    }

    /// Puts a body made for SD.Next into this dialect, and names the task.
    ///
    /// A1111 and Forge take the checkpoint from `override_settings` alone (A1111 `modules/processing.py`,
    /// `process_images`), where it would be put back after the job: a queue of jobs for one checkpoint would load it
    /// again and again.
    pub fn adapt_body(self, body: &mut Map<String, Value>, task_id: &str) {
        if self == Self::Sdnext {
            return;
        }
        body.insert("force_task_id".to_owned(), task_id.into());
        let Some(model) = body.remove("sd_model_checkpoint") else { return };
        let overrides = body.entry("override_settings").or_insert_with(|| json!({}));
        if let Value::Object(overrides) = overrides {
            overrides.insert("sd_model_checkpoint".to_owned(), model);
            body.insert("override_settings_restore_afterwards".to_owned(), false.into());
        }
    }

    /// Puts a plan made for SD.Next into this dialect.
    ///
    /// A1111 and Forge always resize before the second pass, and image to image runs only the share of the steps that
    /// its strength asks for (A1111 `modules/sd_samplers_common.py`, `setup_img2img_steps`).
    pub fn adapt_plan(self, input: &mut PlanInput) {
        if self == Self::Sdnext {
            return;
        }
        if let Some(hires) = &mut input.hires {
            hires.resize_mode = None;
        }
        if let Some(img2img) = &mut input.img2img {
            img2img.shortens = true;
        }
    }

    /// Whether a render that was cut short answers its unfinished picture at full size, so that only the flags tell it
    /// from a whole one: A1111 decodes what it has (`modules/sd_samplers_common.py`, `launch_sampling`).
    pub fn cut_looks_whole(self) -> bool {
        self != Self::Sdnext
    }

    /// Whether a failed allocation is an exception, and thus never looks like an interrupt. SD.Next hides it behind a
    /// success, and only its log tells.
    pub fn raises_out_of_memory(self) -> bool {
        self != Self::Sdnext
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Plan;

    fn adapted(dialect: Dialect, body: &Value) -> Value {
        let mut body = body.as_object().cloned().expect("an object");
        dialect.adapt_body(&mut body, "stepcast(1-1)");
        body.into()
    }

    #[test]
    fn a_checkpoint_moves_into_the_overrides_and_stays_loaded() {
        let body = json!({"sd_model_checkpoint": "a", "override_settings": {"CLIP_stop_at_last_layers": 2}});
        assert_eq!(adapted(Dialect::Sdnext, &body), body);
        for dialect in [Dialect::A1111, Dialect::Forge] {
            let expected = json!({"force_task_id": "stepcast(1-1)", "override_settings_restore_afterwards": false,
                "override_settings": {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": "a"}});
            assert_eq!(adapted(dialect, &body), expected);
            assert_eq!(adapted(dialect, &json!({})), json!({"force_task_id": "stepcast(1-1)"}));
        }
    }

    #[test]
    fn the_plan_shortens_image_to_image_and_resizes_the_second_pass() {
        let body = json!({"steps": 20, "width": 512, "height": 512, "denoising_strength": 0.5});
        let mut input = PlanInput::from_body(&body, true);
        Dialect::A1111.adapt_plan(&mut input);
        assert_eq!(Plan::new(&input).total_steps(), 11);
        let mut input = PlanInput::from_body(&json!({"enable_hr": true, "width": 512, "height": 512}), false);
        Dialect::Forge.adapt_plan(&mut input);
        assert_eq!(Plan::new(&input).sizes[0].width, 1024);
    }
}
