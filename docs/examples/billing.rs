//! Counts the images and steps of each owner: what a bill is made of.
//!
//! ```sh
//! NATS_USER=reader NATS_PASSWORD=... cargo run --example billing -- count     # until it is stopped, and again
//! cargo run --example billing -- report
//! ```
//!
//! An operator makes the durable consumer once (`billing.py create`). Nothing is missed and nothing is counted twice,
//! whenever this is killed: the consumer remembers what was acknowledged, an event is acknowledged after it is in the
//! ledger, and of the ledger's lines with the same `Nats-Msg-Id` one counts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::ConnectOptions;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, Message};
use clap::{Parser, Subcommand};
use futures_util::TryStreamExt as _;
use serde_json::{Value, json};

const STREAM: &str = "STEPCAST_EVENTS";
const DEFAULT_STEPS: u64 = 20;

#[derive(Parser)]
struct Arguments {
    #[arg(long, env = "NATS_URL", default_value = "nats://localhost:4222")]
    nats: String,
    #[arg(long, env = "NATS_USER", default_value = "reader")]
    user: String,
    #[arg(long, env = "NATS_PASSWORD", default_value = "", hide_env_values = true)]
    password: String,
    /// The durable consumer, named as the user who reads it.
    #[arg(long, default_value = "reader")]
    consumer: String,
    /// Events that were counted, one to a line.
    #[arg(long, default_value = "billing.jsonl")]
    ledger: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Count,
    Report,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match arguments.what {
        What::Count => count(&arguments).await,
        What::Report => report(&arguments.ledger),
    }
}

async fn count(arguments: &Arguments) -> anyhow::Result<()> {
    // A user hears only answers to its own questions: on its own inbox.
    let client = ConnectOptions::with_user_and_password(arguments.user.clone(), arguments.password.clone())
        .custom_inbox_prefix(format!("_INBOX.{}", arguments.user))
        .connect(&arguments.nats)
        .await?;
    let jetstream = jetstream::new(client);
    let consumer: PullConsumer = jetstream
        .get_consumer_from_stream(&arguments.consumer, STREAM)
        .await
        .context("an operator makes the consumer")?;
    let mut ledger = File::options().create(true).append(true).open(&arguments.ledger)?;
    // What a crash may have cut off is not to spoil the next line.
    writeln!(ledger)?;
    println!("counting");
    loop {
        let batch = consumer.batch().max_messages(100).expires(Duration::from_secs(1)).messages();
        let messages: Vec<Message> = match batch.await?.try_collect().await {
            Ok(messages) => messages,
            Err(error) => {
                eprintln!("NATS is away ({error}); trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        for message in &messages {
            if let Some(line) = line(message)? {
                writeln!(ledger, "{line}")?;
            }
        }
        ledger.sync_data()?;
        for message in &messages {
            message.ack().await.map_err(anyhow::Error::from_boxed)?;
        }
    }
}

/// What the ledger keeps of an event, if anything.
fn line(message: &Message) -> anyhow::Result<Option<Value>> {
    // stepcast.v1.event.<owner>.<job>.<kind>
    let tokens: Vec<&str> = message.subject.split('.').collect();
    let &[_, _, _, owner, job, kind] = tokens.as_slice() else { return Ok(None) };
    let id = message
        .headers
        .as_ref()
        .and_then(|headers| headers.get("Nats-Msg-Id"))
        .context("an event has an id")?;
    let data = &serde_json::from_slice::<Value>(&message.payload)?["data"];
    let attempt = &data["attempt"];
    let base = json!({"id": id.as_str(), "kind": kind, "owner": owner, "job": job, "attempt": attempt});
    Ok(match kind {
        "started" => Some(with(base, "steps", data["params"]["steps"].as_u64().unwrap_or(DEFAULT_STEPS))),
        "completed" => Some(with(base, "images", data["images"].as_array().map_or(0, Vec::len) as u64)),
        _ => None,
    })
}

fn with(mut line: Value, name: &str, number: u64) -> Value {
    line[name] = number.into();
    line
}

#[derive(Default)]
struct Sum {
    jobs: u64,
    images: u64,
    steps: u64,
}

fn report(ledger: &Path) -> anyhow::Result<()> {
    let lines = BufReader::new(File::open(ledger)?).lines();
    let mut seen = HashSet::new();
    let (mut steps, mut completed) = (HashMap::new(), Vec::new());
    for line in lines {
        // A last line that was cut off was not acknowledged either: its event came again.
        let Ok(line) = serde_json::from_str::<Value>(&line?) else { continue };
        if !seen.insert(line["id"].to_string()) {
            continue;
        }
        let attempt = (line["job"].to_string(), line["attempt"].to_string());
        match line["kind"].as_str() {
            Some("started") => {
                steps.insert(attempt, line["steps"].as_u64().unwrap_or(0));
            }
            _ => completed.push((attempt, line)),
        }
    }
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for (attempt, line) in completed {
        let images = line["images"].as_u64().unwrap_or(0);
        let sum = sums.entry(line["owner"].as_str().unwrap_or_default().to_owned()).or_default();
        sum.jobs += 1;
        sum.images += images;
        sum.steps += images * steps.get(&attempt).copied().unwrap_or(0);
    }
    for (owner, Sum { jobs, images, steps }) in sums {
        println!("{}", json!({"owner": owner, "jobs": jobs, "images": images, "steps": steps}));
    }
    Ok(())
}
