//! What a submit costs: one after another, and sixteen at a time.

use std::time::{Duration, Instant};

use serde_json::json;
use stepcast_tests::client::Http;
use stepcast_tests::stack::{Setup, Stack};
use tokio::task::JoinSet;

use crate::{figure, row};

const ONE_BY_ONE: usize = 500;
const TOGETHER: usize = 4_000;
const CLIENTS: usize = 16;

pub(crate) async fn run() -> anyhow::Result<()> {
    // A backend that nobody answers for: jobs are accepted and wait.
    let stack = Stack::start_on(Setup::unchecked(), &[("away", "http://127.0.0.1:9".to_owned())]).await?;
    let http = stack.http();
    let mut samples = Vec::with_capacity(ONE_BY_ONE);
    for _ in 0..ONE_BY_ONE {
        samples.push(submit(&http).await);
    }
    row("submit, one after another (durable, event recorded)", samples);

    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let http = http.clone();
        clients.spawn(async move {
            let mut samples = Vec::new();
            for _ in 0..TOGETHER / CLIENTS {
                samples.push(submit(&http).await);
            }
            samples
        });
    }
    let samples: Vec<Duration> = clients.join_all().await.into_iter().flatten().collect();
    let rate = samples.len() as f64 / begun.elapsed().as_secs_f64();
    row(&format!("submit, {CLIENTS} clients"), samples);
    figure(&format!("submits a second, {CLIENTS} clients"), &format!("{rate:.0}"));
    Ok(())
}

async fn submit(http: &Http) -> Duration {
    let begun = Instant::now();
    http.submit(&json!({"prompt": "a beautiful landscape", "steps": 10})).await;
    begun.elapsed()
}
