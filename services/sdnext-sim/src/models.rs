//! Which model is loaded, and the ways to get it wrong.

use serde_json::{Value, json};

#[derive(Debug)]
pub(crate) struct Models {
    pub(crate) known: Vec<String>,
    /// The model that the options name, whether it exists or not.
    pub(crate) selected: String,
    pub(crate) loaded: Option<String>,
    /// Grows with every load: a job that sees it grow has lost its model.
    pub(crate) generation: u64,
    /// Loads under way.
    pub(crate) loading: u32,
    pub(crate) wedged: bool,
    pub(crate) loads: u64,
}

impl Models {
    pub(crate) fn new(known: Vec<String>) -> Self {
        let selected = known.first().cloned().unwrap_or_default();
        let loaded = known.first().cloned();
        Self { known, selected, loaded, generation: 0, loading: 0, wedged: false, loads: 0 }
    }

    /// The model that `name` means: a title, or its last part.
    pub(crate) fn find(&self, name: &str) -> Option<String> {
        let last = |title: &str| title.rsplit('/').next().unwrap_or_default().to_owned();
        self.known
            .iter()
            .find(|title| *title == name)
            .or_else(|| self.known.iter().find(|title| last(title) == name))
            .cloned()
    }

    /// The body of `GET /sdapi/v1/checkpoint`.
    pub(crate) fn checkpoint(&self) -> Value {
        match &self.loaded {
            None => json!({"type": null, "class": null}),
            Some(title) => json!({
                "type": "sd",
                "class": "StableDiffusionPipeline",
                "checkpoint": format!("models/{title}"),
                "title": title,
                "name": title,
                "filename": format!("models/{title}"),
                "hash": null,
            }),
        }
    }

    /// The body of `GET /sdapi/v1/sd-models`.
    pub(crate) fn list(&self) -> Value {
        self.known
            .iter()
            .map(|title| {
                json!({
                    "title": title,
                    "model_name": title,
                    "filename": format!("models/{title}"),
                    "type": "diffusers",
                    "sha256": null,
                    "hash": null,
                    "config": null,
                })
            })
            .collect()
    }
}
