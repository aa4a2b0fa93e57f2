//! Standard output, written so that a reader who leaves early (`| head`) ends the program instead of panicking it.

use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

/// Prints a line at once.
pub fn line(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).context("standard output cannot be written")
}

/// Prints a value as one line of JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(&serde_json::to_string(value).context("the answer cannot be said in JSON")?)
}
