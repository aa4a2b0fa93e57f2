//! Stepcast as it is deployed: `nats-server`, api, poller and gateway, each a process.

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::process::Command;

use crate::client::Http;
use crate::nats::NatsServer;
use crate::process::{Process, binary};
use crate::wait::until;
use crate::watcher::Watcher;

/// A whole system on loopback, with its data in a folder of its own.
pub struct Stack {
    pub nats: NatsServer,
    pub api: Process,
    pub gateway: Process,
    pub poller: Process,
    pub folder: TempDir,
    api_address: String,
    gateway_address: String,
    backends: String,
}

impl Stack {
    /// Starts everything over these backends (`id`, `url`), and waits until all of it is ready.
    pub async fn start(backends: &[(&str, String)]) -> anyhow::Result<Self> {
        let nats = NatsServer::start().await?;
        let folder = tempfile::tempdir()?;
        let backends = backends.iter().map(|(id, url)| format!("{id}={url}")).collect::<Vec<_>>().join(",");
        let mut api = Process::start("api", &mut api_command(&nats, &folder))?;
        let api_address = api.address().await?;
        let mut gateway = Process::start("gateway", &mut service("stepcast-gateway", &nats))?;
        let gateway_address = gateway.address().await?;
        let poller = Process::start("poller", &mut poller_command(&nats, &folder, &backends))?;
        let stack = Self { nats, api, gateway, poller, folder, api_address, gateway_address, backends };
        stack.wait_for_backends().await;
        Ok(stack)
    }

    /// HTTP to the api.
    pub fn http(&self) -> Http {
        Http::to(&self.api_address)
    }

    /// A WebSocket to the gateway, connected.
    pub async fn watcher(&self) -> anyhow::Result<Watcher> {
        Watcher::connect(&self.gateway_address).await.context("the gateway takes a connection")
    }

    /// The gateway's address, `host:port`.
    pub fn gateway_address(&self) -> &str {
        &self.gateway_address
    }

    /// Starts the poller again after it was stopped or killed.
    pub fn restart_poller(&mut self) -> anyhow::Result<()> {
        self.poller =
            Process::start("poller", &mut poller_command(&self.nats, &self.folder, &self.backends))?;
        Ok(())
    }

    /// Starts the api again, on a new port, after it was stopped or killed.
    pub async fn restart_api(&mut self) -> anyhow::Result<()> {
        self.api = Process::start("api", &mut api_command(&self.nats, &self.folder))?;
        self.api_address = self.api.address().await?;
        Ok(())
    }

    async fn wait_for_backends(&self) {
        let count = self.backends.split(',').filter(|backend| !backend.is_empty()).count();
        until("every backend is spoken of", async || {
            let answer = self.http().get("/generation/backends").await;
            (answer.json["backends"].as_array()?.len() == count).then_some(())
        })
        .await;
    }
}

fn service(name: &str, nats: &NatsServer) -> Command {
    let mut command = Command::new(binary(name));
    command
        .env("STEPCAST_NATS_URL", nats.url())
        .env("STEPCAST_LISTEN", "127.0.0.1:0")
        .env("STEPCAST_LOG_FORMAT", "json");
    command
}

fn api_command(nats: &NatsServer, folder: &TempDir) -> Command {
    let mut command = service("stepcast-api", nats);
    command
        .env("STEPCAST_DATABASE_URL", format!("sqlite://{}/stepcast.db", folder.path().display()))
        .env("STEPCAST_IMAGES_URL", images_url(folder));
    command
}

fn poller_command(nats: &NatsServer, folder: &TempDir, backends: &str) -> Command {
    let mut command = service("stepcast-poller", nats);
    command.env("STEPCAST_SDNEXT", backends).env("STEPCAST_IMAGES_URL", images_url(folder));
    // Simulated servers have no limit unless a test gives them one.
    command.env("STEPCAST_POSTS_PER_MINUTE", "0");
    command
}

fn images_url(folder: &TempDir) -> String {
    format!("file://{}/images", folder.path().display())
}
