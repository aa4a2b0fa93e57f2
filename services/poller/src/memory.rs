//! What a backend's timings have taught, kept in a file.

use std::path::{Path, PathBuf};

use stepcast_shared::ids::BackendId;
use tracing::warn;

use crate::weights::{Timings, Weights};

/// Learnt timings, and where they are kept.
#[derive(Debug)]
pub struct Memory {
    /// What is known now.
    pub weights: Weights,
    file: Option<PathBuf>,
}

impl Memory {
    /// Reads what was learnt before; a missing or broken file teaches nothing.
    pub fn open(folder: Option<&Path>, backend: &BackendId) -> Self {
        let file = folder.map(|folder| folder.join(format!("{backend}.json")));
        let weights = match file.as_deref().map(std::fs::read) {
            Some(Ok(bytes)) => Weights::from_json(&bytes),
            _ => Weights::default(),
        };
        Self { weights, file }
    }

    /// Takes in what a completed job has shown. A file that cannot be written costs only a later start some precision.
    pub fn learn(&mut self, timings: &Timings) {
        self.weights.learn(timings);
        if let Some(file) = &self.file
            && let Err(error) = replace(file, &self.weights.to_json())
        {
            warn!(file = %file.display(), error = %error, "learnt timings not kept");
        }
    }
}

fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let new = file.with_extension("json.new");
    std::fs::write(&new, bytes)?;
    std::fs::rename(new, file)
}
