//! A NATS server as a child that cannot outlive us.
//!
//! The child is this program again, which asks the kernel for a signal at its parent's death and then becomes
//! `nats-server`. It has a process group of its own, so that Ctrl-C reaches it through us alone, after the services
//! that still publish have stopped.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, getppid, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::cli;
use crate::leftover;
use crate::nats_config::Files;

/// How long the server may take to listen: it reads its store first.
const START: Duration = Duration::from_secs(30);
/// How long it may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(5);

/// Becomes a NATS server that ends with its parent. Returns only if that fails.
pub fn become_server(args: &cli::NatsChild) -> anyhow::Error {
    // The server syncs each acknowledged write, so killing it loses nothing.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return anyhow::Error::new(error).context("the kernel refuses a signal at the parent's death");
    }
    // A parent that died before that line sends no signal any more.
    if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(args.parent) {
        return anyhow::anyhow!("the parent has ended already");
    }
    // Whatever the file is called, a leftover is recognised by this name.
    let mut server = std::process::Command::new(&args.program);
    let error = server.arg0("nats-server").arg("-c").arg(&args.config).exec();
    anyhow::Error::new(error).context(format!("{} cannot be run", args.program.display()))
}

/// A running server.
#[derive(Debug)]
pub struct NatsChild {
    child: Child,
    pid: u32,
    files: Files,
    url: String,
}

impl NatsChild {
    /// Starts a server that keeps its files in `folder`, and waits until it listens.
    ///
    /// Call it on the main thread: the kernel takes the end of the *thread* that started a child for its parent's
    /// death, and only the main thread lives as long as the process.
    pub async fn start(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let files = Files::within(folder);
        leftover::stop(&files).await?;
        files.write()?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&files.log)
            .with_context(|| format!("{} cannot be opened", files.log.display()))?;
        let ourselves = std::env::current_exe().context("the path of this program cannot be read")?;
        let child = Command::new(ourselves)
            .arg("nats-child")
            .arg("--parent")
            .arg(std::process::id().to_string())
            .arg(program)
            .arg(&files.config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("the log of nats-server cannot be shared")?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("nats-server cannot be started")?;
        let pid = child.id().context("a child just started has an id")?;
        let mut server = Self { child, pid, files, url: String::new() };
        server.url = server.wait_for_address().await?;
        Ok(server)
    }

    async fn wait_for_address(&mut self) -> anyhow::Result<String> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(address) = self.files.address(self.pid) {
                return Ok(address);
            }
            if let Some(status) = self.child.try_wait().context("nats-server cannot be waited for")? {
                bail!("nats-server ended at once ({status}):\n{}", self.files.log_tail());
            }
            if Instant::now() >= deadline {
                bail!("nats-server does not listen after {} s:\n{}", START.as_secs(), self.files.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Resolves if it ends, to an error that says so. Cancel-safe.
    pub async fn died(&mut self) -> anyhow::Error {
        let how = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        anyhow::anyhow!("nats-server ended by itself ({how}); its log is {}", self.files.log.display())
    }

    /// Stops it: asks first, kills once the time is up.
    pub async fn stop(mut self) {
        if self.ask_to_stop().await.is_none() {
            warn!("nats-server does not stop when asked and is killed");
            let _ = self.child.kill().await;
        }
        let _ = fs::remove_file(&self.files.pid);
    }

    async fn ask_to_stop(&mut self) -> Option<ExitStatus> {
        // Not yet waited for, so the number is still its own.
        if self.child.id().is_some() {
            let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw)?;
            let _ = kill_process(pid, Signal::TERM);
        }
        timeout(STOP, self.child.wait()).await.ok()?.ok()
    }
}
