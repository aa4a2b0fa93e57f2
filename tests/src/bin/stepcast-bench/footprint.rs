//! What `stepcast up` needs: time to ready, and memory while idle.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::Value;
use stepcast_tests::process::{Process, binary};
use tokio::process::Command;
use tokio::time::sleep;

use crate::figure;

/// Long enough for what only start-up needs to be given back.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) async fn run() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(binary("stepcast"));
    command.args(["up", "--json", "--listen", "127.0.0.1:0", "--sdnext", "http://127.0.0.1:9", "--data-dir"]);
    command.arg(folder.path()).env("STEPCAST_NATS_SERVER", stepcast_tests::nats::server_binary());
    let begun = Instant::now();
    let mut up = Process::start("stepcast up", &mut command)?;
    up.line(|line| serde_json::from_str::<Value>(line).ok().filter(|line| line["event"] == "ready")).await?;
    figure(
        "`stepcast up`: time to ready, new data directory",
        &format!("{} ms", begun.elapsed().as_millis()),
    );
    sleep(SETTLE).await;
    figure(
        "`stepcast up`: resident memory while idle",
        &format!("{:.1} MB", resident_kib(up.id())? / 1024.0),
    );
    up.signal(rustix::process::Signal::TERM);
    anyhow::ensure!(up.end().await.success(), "it stops cleanly");
    Ok(())
}

fn resident_kib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("a process has a size")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
