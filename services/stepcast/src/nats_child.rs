//! A NATS server as a child that cannot outlive us.
//!
//! The child is this program again, which asks the kernel for a signal at its parent's death and then becomes
//! `nats-server`. It has a process group of its own, so that Ctrl-C reaches it through us alone, after the services
//! that still publish have stopped.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, getppid, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::cli;
use crate::leftover;
use crate::nats_config::{Addresses, Files};
use crate::nats_health::stuck;

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
    program: PathBuf,
    files: Files,
    addresses: Addresses,
}

impl NatsChild {
    /// Starts a server that keeps its files in `folder`, and waits until it listens.
    ///
    /// Call it on the main thread: the kernel takes the end of the *thread* that started a child for its parent's
    /// death, and only the main thread lives as long as the process.
    pub async fn start(program: &Path, folder: &Path) -> anyhow::Result<Self> {
        let files = Files::within(folder);
        leftover::stop(&files).await?;
        let child = launch(program, &files, 0)?;
        let pid = child.id().context("a child just started has an id")?;
        let (program, addresses) = (program.to_owned(), Addresses::default());
        let mut server = Self { child, pid, program, files, addresses };
        server.addresses = server.wait_for_addresses().await?;
        Ok(server)
    }

    async fn wait_for_addresses(&mut self) -> anyhow::Result<Addresses> {
        let deadline = Instant::now() + START;
        loop {
            if let Some(addresses) = self.files.addresses(self.pid) {
                return Ok(addresses);
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
        &self.addresses.nats
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Looks after it until it ends by itself, and resolves to an error that says so. Call it on the main thread.
    ///
    /// A server that once found no room stores nothing more until it is started again, which is done once there is
    /// room. Cancel-safe, but for a start that is under way.
    pub async fn keep(&mut self) -> anyhow::Error {
        loop {
            let trouble = tokio::select! {
                ended = self.child.wait() => {
                    let how = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                    let log = self.files.log.display();
                    return anyhow::anyhow!("nats-server ended by itself ({how}); its log is {log}");
                }
                trouble = stuck(&self.addresses.monitoring, &self.files.store) => trouble,
            };
            warn!(trouble, "nats-server stores nothing more, and is started again");
            if let Err(error) = self.start_again().await {
                return error.context("nats-server could not be started again");
            }
        }
    }

    /// Starts it again where it was.
    async fn start_again(&mut self) -> anyhow::Result<()> {
        let port = self.addresses.nats.rsplit(':').next().and_then(|port| port.parse().ok());
        self.end().await;
        self.child = launch(&self.program, &self.files, port.context("its address has a port")?)?;
        self.pid = self.child.id().context("a child just started has an id")?;
        self.addresses = self.wait_for_addresses().await?;
        Ok(())
    }

    /// Stops it: asks first, kills once the time is up.
    pub async fn stop(mut self) {
        self.end().await;
    }

    async fn end(&mut self) {
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

fn launch(program: &Path, files: &Files, port: u16) -> anyhow::Result<Child> {
    files.write(port)?;
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&files.log)
        .with_context(|| format!("{} cannot be opened", files.log.display()))?;
    let ourselves = std::env::current_exe().context("the path of this program cannot be read")?;
    Command::new(ourselves)
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
        .context("nats-server cannot be started")
}
