//! `submit`: from flags to a job, and with `--watch` to its images.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use stepcast_shared::ids::JobId;
use stepcast_shared::job::INPUT_PREFIX;
use stepcast_shared::messages::{Complete, Output};
use tokio::time::{Instant, sleep};

use crate::cli::{PriorityWord, Submit};
use crate::client::{Client, Error};
use crate::exit::Exit;
use crate::follow::Follow;
use crate::{out, watch};

/// How far a job's row may be behind its last event.
const ROW_LAG: Duration = Duration::from_secs(10);
const ROW_RECHECK: Duration = Duration::from_millis(50);

/// Does what the command line says.
///
/// Without `--watch` the job's id is all that standard output gets, so that a script can keep it.
pub async fn run(args: Submit, json: bool) -> anyhow::Result<Exit> {
    let client = Client::new(&args.server.server)?;
    if let Some(folder) = &args.out {
        // Before the job costs anything.
        std::fs::create_dir_all(folder).with_context(|| format!("{} cannot be made", folder.display()))?;
    }
    let mut body = body(&args);
    if !args.init_image.is_empty() {
        body.insert("init_images".to_owned(), upload(&client, &args.init_image).await?);
    }
    let url = client.url("generation/queue-generation");
    let key = args.idempotency_key.as_deref();
    let accepted: Value = client.post(url, Some(&Value::Object(body)), key).await?;
    let job_id: JobId = accepted["job_id"]
        .as_str()
        .and_then(|id| id.parse().ok())
        .context("the server accepted the job and did not say its id")?;
    if json {
        out::json(&accepted)?;
    } else if args.watch {
        out::line(&format!("job {job_id}"))?;
    } else {
        out::line(&job_id.to_string())?;
        hint(&args, job_id, &accepted);
    }
    if !args.watch {
        return Ok(Exit::Done);
    }
    let mut follow = Follow::jobs([job_id]);
    watch::watch(&client, &mut follow, json).await?;
    for end in follow.ends() {
        finish(&client, end, args.out.as_deref(), json).await?;
    }
    Ok(follow.exit())
}

/// The body: only what was said, so that the server's own defaults hold.
fn body(args: &Submit) -> Map<String, Value> {
    let priority = args.priority.map(|priority| match priority {
        PriorityWord::Low => "low",
        PriorityWord::Normal => "normal",
        PriorityWord::High => "high",
    });
    let fields = [
        ("prompt", json!(args.prompt)),
        ("negative_prompt", json!(args.negative)),
        ("steps", json!(args.steps)),
        ("width", json!(args.width)),
        ("height", json!(args.height)),
        ("seed", json!(args.seed)),
        ("cfg_scale", json!(args.cfg_scale)),
        ("sampler_name", json!(args.sampler)),
        ("batch_size", json!(args.batch_size)),
        ("n_iter", json!(args.n_iter)),
        ("model", json!(args.model)),
        ("priority", json!(priority)),
        ("pool", json!(args.pool)),
        ("backend", json!(args.backend)),
        ("label", json!(args.label)),
        ("denoising_strength", json!(args.denoising_strength)),
        ("sdnext", json!(args.sdnext)),
    ];
    fields
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

async fn upload(client: &Client, files: &[PathBuf]) -> anyhow::Result<Value> {
    #[derive(Deserialize)]
    struct Stored {
        input_id: String,
    }
    let mut inputs = Vec::with_capacity(files.len());
    for file in files {
        let bytes =
            tokio::fs::read(file).await.with_context(|| format!("{} cannot be read", file.display()))?;
        let stored: Stored = client
            .upload(client.url("generation/inputs"), bytes)
            .await
            .with_context(|| format!("{} is not accepted", file.display()))?;
        inputs.push(format!("{INPUT_PREFIX}{}", stored.input_id));
    }
    Ok(json!(inputs))
}

/// For a person at a terminal: what to do with the id.
fn hint(args: &Submit, job_id: JobId, accepted: &Value) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let server = match args.server.server.as_str() {
        "http://127.0.0.1:8000/" => String::new(),
        url => format!(" --server {url}"),
    };
    let place =
        accepted["position"].as_u64().map(|place| format!(", place {place} in line")).unwrap_or_default();
    let _ = writeln!(std::io::stderr(), "accepted{place}; watch it with: stepcast watch {job_id}{server}");
}

/// Saves the images, or says where they are.
async fn finish(client: &Client, end: &Complete, folder: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let whole = end.outputs.iter().filter(|output| !output.partial);
    for (index, (image, output)) in end.images.iter().zip(whole).enumerate() {
        let Some(folder) = folder else {
            // Elsewhere the watch has said so already.
            if !json && std::io::stderr().is_terminal() {
                out::line(client.url(image).as_str())?;
            }
            continue;
        };
        let path = folder.join(file_name(end.job_id, index, output));
        let bytes = image_bytes(client, image).await?;
        tokio::fs::write(&path, bytes)
            .await
            .with_context(|| format!("{} cannot be written", path.display()))?;
        if json {
            out::json(&json!({ "type": "saved", "data": { "job_id": end.job_id, "path": path } }))?;
        } else {
            out::line(&path.display().to_string())?;
        }
    }
    Ok(())
}

/// The bytes of an image whose job has just ended. The event comes first: the server's row, by which it finds the
/// image, follows it by a moment.
async fn image_bytes(client: &Client, image: &str) -> Result<Bytes, Error> {
    let deadline = Instant::now() + ROW_LAG;
    loop {
        match client.bytes(client.url(image)).await {
            Err(Error::Refused(problem)) if problem.status == 404 && Instant::now() < deadline => {
                sleep(ROW_RECHECK).await;
            }
            answer => return answer,
        }
    }
}

fn file_name(job_id: JobId, index: usize, output: &Output) -> String {
    let extension = match output.content_type.as_str() {
        "image/jpeg" => "jpg",
        "image/webp" => "webp",
        _ => "png",
    };
    format!("{job_id}-{index}.{extension}")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn body_of(arguments: &[&str]) -> Value {
        let cli = Cli::parse_from(["stepcast", "submit"].iter().chain(arguments));
        let Command::Submit(args) = cli.command else { panic!("this is `submit`") };
        Value::Object(body(&args))
    }

    #[test]
    fn only_what_was_said_is_sent() {
        assert_eq!(body_of(&["a fox"]), json!({ "prompt": "a fox" }));
        assert_eq!(
            body_of(&[
                "a fox",
                "--seed",
                "-1",
                "--sampler",
                "Euler a",
                "--priority",
                "high",
                "--sdnext",
                r#"{"clip_skip":2}"#
            ]),
            json!({ "prompt": "a fox", "seed": -1, "sampler_name": "Euler a", "priority": "high", "sdnext": { "clip_skip": 2 } })
        );
    }
}
