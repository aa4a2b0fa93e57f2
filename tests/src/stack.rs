//! Stepcast as it is deployed: `nats-server`, api, poller and gateway, each a process.

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::process::Command;

use crate::client::Http;
use crate::nats::NatsServer;
use crate::process::{Process, binary, limitable};
use crate::tap::Tap;
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
    setup: Setup,
    _tap: Option<Tap>,
}

/// What differs from a stack of one machine.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Another database than a file in the stack's folder.
    pub database_url: Option<String>,
    /// Another image store than a folder in the stack's.
    pub images_url: Option<String>,
    /// Further variables of the api.
    pub api: Vec<(&'static str, String)>,
    /// Further variables of the gateway.
    pub gateway: Vec<(&'static str, String)>,
    /// Further variables of the poller.
    pub poller: Vec<(&'static str, String)>,
    /// Whether api and poller are started so that a limit on their files makes writes fail.
    pub limitable: bool,
    /// Whether NATS writes through to the disk before it acknowledges.
    pub sync_always: bool,
    /// Whether nothing of what is said is held against the contract: for measurements.
    pub unchecked: bool,
}

impl Setup {
    /// For measurements.
    pub fn unchecked() -> Self {
        Self { unchecked: true, ..Self::default() }
    }
}

impl Stack {
    /// Starts everything over these backends (`id`, `url`), and waits until all of it is ready.
    pub async fn start(backends: &[(&str, String)]) -> anyhow::Result<Self> {
        Self::start_on(Setup::default(), backends).await
    }

    /// As [`Stack::start`], with a setup of its own.
    pub async fn start_on(setup: Setup, backends: &[(&str, String)]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let nats = if setup.sync_always {
            let config = folder.path().join("nats.conf");
            std::fs::write(&config, "jetstream { sync_interval: always }\n")?;
            NatsServer::start_with(&["-c", &config.display().to_string()]).await?
        } else {
            NatsServer::start().await?
        };
        let tap = if setup.unchecked {
            None
        } else {
            Some(Tap::start(&async_nats::connect(nats.url()).await?).await?)
        };
        let backends = backends.iter().map(|(id, url)| format!("{id}={url}")).collect::<Vec<_>>().join(",");
        let mut api = Process::start("api", &mut api_command(&nats, &folder, &setup))?;
        let api_address = api.address().await?;
        let mut gateway = service("stepcast-gateway", &nats.url());
        let mut gateway = Process::start("gateway", gateway.envs(setup.gateway.iter().cloned()))?;
        let gateway_address = gateway.address().await?;
        let poller = Process::start("poller", &mut poller_command(&nats, &folder, &backends, &setup))?;
        let stack = Self {
            nats,
            api,
            gateway,
            poller,
            folder,
            api_address,
            gateway_address,
            backends,
            setup,
            _tap: tap,
        };
        stack.wait_for_backends().await;
        Ok(stack)
    }

    /// HTTP to the api.
    pub fn http(&self) -> Http {
        let http = Http::to(&self.api_address);
        if self.setup.unchecked { http.unchecked() } else { http }
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
        self.poller = self.another_poller()?;
        Ok(())
    }

    /// Starts one more poller over the same backends.
    pub fn another_poller(&self) -> anyhow::Result<Process> {
        let mut command = poller_command(&self.nats, &self.folder, &self.backends, &self.setup);
        Process::start("poller", &mut command)
    }

    /// Starts the api again, on a new port, after it was stopped or killed.
    pub async fn restart_api(&mut self) -> anyhow::Result<()> {
        self.api = Process::start("api", &mut api_command(&self.nats, &self.folder, &self.setup))?;
        self.api_address = self.api.address().await?;
        Ok(())
    }

    /// Starts one more api beside the first.
    pub async fn another_api(&self) -> anyhow::Result<(Process, Http)> {
        let mut api = Process::start("api", &mut api_command(&self.nats, &self.folder, &self.setup))?;
        let http = Http::to(&api.address().await?);
        Ok((api, http))
    }

    /// The address of its database.
    pub fn database_url(&self) -> String {
        database_url(&self.folder, &self.setup)
    }

    /// The folder of its images.
    pub fn images(&self) -> std::path::PathBuf {
        self.folder.path().join("images")
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

/// One of our binaries, on a NATS server and a free port.
pub fn service(name: &str, nats_url: &str) -> Command {
    on(Command::new(binary(name)), nats_url)
}

fn on(mut command: Command, nats_url: &str) -> Command {
    command
        .env("STEPCAST_NATS_URL", nats_url)
        .env("STEPCAST_LISTEN", "127.0.0.1:0")
        .env("STEPCAST_LOG_FORMAT", "json");
    command
}

fn api_command(nats: &NatsServer, folder: &TempDir, setup: &Setup) -> Command {
    let mut command = program("stepcast-api", nats, setup);
    command
        .env("STEPCAST_DATABASE_URL", database_url(folder, setup))
        .env("STEPCAST_IMAGES_URL", images_url(folder, setup))
        .envs(setup.api.iter().cloned());
    command
}

fn program(name: &str, nats: &NatsServer, setup: &Setup) -> Command {
    if setup.limitable { on(limitable(name), &nats.url()) } else { service(name, &nats.url()) }
}

fn database_url(folder: &TempDir, setup: &Setup) -> String {
    let file = || format!("sqlite://{}/stepcast.db", folder.path().display());
    setup.database_url.clone().unwrap_or_else(file)
}

fn poller_command(nats: &NatsServer, folder: &TempDir, backends: &str, setup: &Setup) -> Command {
    let mut command = program("stepcast-poller", nats, setup);
    command.env("STEPCAST_SDNEXT", backends).env("STEPCAST_IMAGES_URL", images_url(folder, setup));
    // Simulated servers have no limit unless a test gives them one.
    command.env("STEPCAST_POSTS_PER_MINUTE", "0").envs(setup.poller.iter().cloned());
    command
}

fn images_url(folder: &TempDir, setup: &Setup) -> String {
    setup.images_url.clone().unwrap_or_else(|| format!("file://{}/images", folder.path().display()))
}
