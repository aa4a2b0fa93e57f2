//! A real `nats-server`, one per test.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::process::Command;

use crate::process::Process;
use crate::wait::until;

/// A server on a free loopback port, with JetStream in a folder of its own.
pub struct NatsServer {
    process: Process,
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
}

impl NatsServer {
    /// Starts one, and waits until it listens.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// As [`NatsServer::start`], with further arguments.
    pub async fn start_with(arguments: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let (process, port) = launch(folder.path(), None, &arguments).await?;
        Ok(Self { process, folder, port, arguments })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The process, to be stopped or killed.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Starts it again where it was, after it was stopped or killed.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        (self.process, _) = launch(self.folder.path(), Some(self.port), &self.arguments).await?;
        Ok(())
    }
}

/// Waits until the server has read all that this client said before, its subscriptions for one.
///
/// A flush of the client is no such wait: it hands bytes to the socket, and another connection may be read first.
pub async fn settled(client: &async_nats::Client) -> anyhow::Result<()> {
    stepcast_shared::nats::inspect::user(client).await.context("the server answers")?;
    Ok(())
}

/// Where the binary is: named by the environment, on the path, or where `make test` puts it.
#[expect(clippy::disallowed_methods, reason = "a test has no command line of its own")]
pub fn server_binary() -> PathBuf {
    if let Ok(path) = std::env::var("STEPCAST_NATS_SERVER") {
        return path.into();
    }
    let venv = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.venv/bin/nats-server");
    if venv.exists() { venv } else { "nats-server".into() }
}

async fn launch(folder: &Path, port: Option<u16>, arguments: &[String]) -> anyhow::Result<(Process, u16)> {
    let ports = folder.join("ports");
    std::fs::create_dir_all(&ports)?;
    for old in std::fs::read_dir(&ports)? {
        std::fs::remove_file(old?.path())?;
    }
    let mut command = Command::new(server_binary());
    command.args(["-a", "127.0.0.1", "-p"]).arg(port.map_or("-1".to_owned(), |port| port.to_string()));
    command.arg("-js").arg("-sd").arg(folder.join("jetstream")).arg("--ports_file_dir").arg(&ports);
    command.args(arguments);
    let process = Process::start("nats-server", &mut command)?;
    let port = until("nats-server listens", async || read_port(&ports)).await;
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.context("nats-server listens")?;
    Ok((process, port))
}

fn read_port(folder: &Path) -> Option<u16> {
    let file = std::fs::read_dir(folder).ok()?.next()?.ok()?;
    let ports: serde_json::Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    let url: url::Url = ports["nats"][0].as_str()?.parse().ok()?;
    url.port()
}
