//! Jobs a second through the whole system: submitted, queued, claimed, posted, stored, recorded, and their rows moved.
//!
//! The renders take no time, and nothing paces them, so what is measured is everything but the GPU. The simulated
//! servers and the clients run on the same machine as the system, and their share is told. As it is large, the part
//! that a deployment has only once, api and NATS, is measured without it too: there the bench itself plays the pollers.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::json;
use stepcast_sdnext_sim::Config;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::nats;
use stepcast_tests::collector::Collector;
use stepcast_tests::database::number;
use stepcast_tests::nats::settled;
use stepcast_tests::postgres::Postgres;
use stepcast_tests::sim::Sim;
use stepcast_tests::stack::{Setup, Stack};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::played::play;
use crate::{cpu, figure};

const JOBS: usize = 4_000;
const CLIENTS: usize = 16;
const BACKENDS: usize = 64;
/// Rounds of what is compared.
const ROUNDS: usize = 3;
/// Longest wait for the next job to end.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) async fn run() -> anyhow::Result<()> {
    for pollers in [Pollers::Real, Pollers::Played] {
        measure("SQLite, NATS synced every 2 minutes", Setup::unchecked(), pollers).await?;
        let setup = Setup { sync_always: true, ..Setup::unchecked() };
        measure("SQLite, NATS synced always", setup, pollers).await?;
        if let Some(postgres) = Postgres::start_durable().await? {
            let setup = Setup { database_url: Some(postgres.url()), ..Setup::unchecked() };
            measure("PostgreSQL, NATS synced every 2 minutes", setup, pollers).await?;
        }
    }
    Ok(())
}

/// What traces cost: the same load without them, with one job of ten and with each, in turn.
pub(crate) async fn traced() -> anyhow::Result<()> {
    for _ in 0..ROUNDS {
        measure("not traced", Setup::unchecked(), Pollers::Real).await?;
        for (what, ratio) in [("one in ten traced", "0.1"), ("all traced", "1")] {
            let collector = Collector::start().await?;
            let mut variables = collector.variables();
            variables.push(("STEPCAST_TRACE_SAMPLE_RATIO", ratio.to_owned()));
            let setup = Setup {
                api: variables.clone(),
                gateway: variables.clone(),
                poller: variables,
                ..Setup::unchecked()
            };
            measure(what, setup, Pollers::Real).await?;
            figure("    spans that reached the collector", &collector.spans().len().to_string());
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pollers {
    /// A poller, over simulated servers.
    Real,
    /// The bench, over none.
    Played,
}

async fn measure(what: &str, setup: Setup, pollers: Pollers) -> anyhow::Result<()> {
    let mut sims = Vec::new();
    if pollers == Pollers::Real {
        for _ in 0..BACKENDS {
            let config = Config {
                step_time: Duration::ZERO,
                decode_time: Duration::ZERO,
                load_time: Duration::ZERO,
                time_scale: 0.0,
                rate_limit: 0,
                ..Config::default()
            };
            sims.push(Sim::with(config).await?);
        }
    }
    let names: Vec<String> = (0..BACKENDS).map(|n| format!("gpu-{n}")).collect();
    let mut backends: Vec<(&str, String)> =
        names.iter().zip(&sims).map(|(name, sim)| (name.as_str(), sim.url())).collect();
    if backends.is_empty() {
        backends.push(("away", "http://127.0.0.1:9".to_owned()));
    }
    let mut stack = Stack::start_on(setup, &backends).await?;
    let client = nats::connect("bench", &NatsConfig::at(stack.nats.url())).await?;
    let mut ends = client.subscribe("stepcast.v1.job.*.*.completed").await?;
    settled(&client).await?;
    let _played = (pollers == Pollers::Played).then(|| play(BACKENDS, &client));
    let own = std::process::id();
    let processes = [
        ("api", stack.api.id()),
        ("poller", stack.poller.id()),
        ("gateway", stack.gateway.id()),
        ("nats-server", stack.nats.process().id()),
        ("the bench itself", own),
    ];
    let before = processes.map(|(_, pid)| cpu::used(pid));

    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let http = stack.http();
        clients.spawn(async move {
            for _ in 0..JOBS / CLIENTS {
                http.submit(&json!({"prompt": "quick", "steps": 1, "width": 64, "height": 64})).await;
            }
        });
    }
    let submitted = async {
        clients.join_all().await;
        begun.elapsed()
    };
    let completed = async {
        for _ in 0..JOBS / CLIENTS * CLIENTS {
            timeout(PATIENCE, ends.next()).await?;
        }
        anyhow::Ok(())
    };
    let (submitted, completed) = tokio::join!(submitted, completed);
    completed?;
    let rows = "SELECT CAST(COUNT(*) AS BIGINT) FROM jobs WHERE status = 'completed'";
    while number(&stack.database_url(), rows).await < i64::try_from(JOBS / CLIENTS * CLIENTS)? {
        sleep(Duration::from_millis(20)).await;
    }
    let all = begun.elapsed();
    let through = if pollers == Pollers::Real { "" } else { ", pollers played" };
    figure(&format!("jobs a second, {what}{through}"), &format!("{:.0}", JOBS as f64 / all.as_secs_f64()));
    figure("    accepted a second meanwhile", &format!("{:.0}", JOBS as f64 / submitted.as_secs_f64()));
    for ((name, pid), before) in processes.into_iter().zip(before) {
        let used = cpu::used(pid)?.saturating_sub(before?);
        let each = used.as_secs_f64() * 1e6 / JOBS as f64;
        figure(&format!("    processor time a job: {name}"), &format!("{each:.0} µs"));
    }
    Ok(())
}
