//! `up`: everything in one process, started in order and stopped in the opposite one.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use async_nats::Client;
use futures_util::StreamExt as _;
use metrics_exporter_prometheus::PrometheusHandle;
use secrecy::ExposeSecret as _;
use stepcast_gateway::GatewayConfig;
use stepcast_shared::address::without_credentials;
use stepcast_shared::config::{NatsConfig, TelemetryConfig};
use stepcast_shared::messages::BackendState;
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{nats, server, subjects, telemetry};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Up;
use crate::data_dir::{self, DataDir};
use crate::demo::Demo;
use crate::nats_child::NatsChild;
use crate::screen::{Comings, Screen, origin};
use crate::services::{self, Settings};
use crate::{nats_binary, out, probe};

/// Starts everything, and returns once it has stopped.
///
/// Call it on the main thread, as [`NatsChild::start`] asks.
pub async fn run(args: Up, json: bool) -> anyhow::Result<()> {
    let telemetry = telemetry::init("stepcast", &telemetry_config(&args)?)?;
    let mut signals = Signals::new()?;
    let data_dir = DataDir::hold(&data_path(&args)?)?;
    let listener = bind(args.listen.listen).await?;
    let mut child = match args.nats_url {
        Some(_) => None,
        None => Some(start_nats(&args, &data_dir).await?),
    };
    let mut demo = if args.demo { Some(Demo::start().await?) } else { None };
    let supervisor = Supervisor::new(args.listen.shutdown_grace);

    let starting = Start {
        settings: settings(&args, &data_dir, child.as_ref(), demo.as_ref())?,
        nats_pid: child.as_ref().map(NatsChild::pid),
        demo: args.demo,
        json,
        data_dir,
    };
    let outcome = tokio::select! {
        outcome = starting.serve(listener, telemetry.metrics.clone(), &supervisor) => outcome,
        () = signals.next() => Ok(()),
        error = child_died(&mut child) => Err(error),
        error = demo_died(&mut demo) => Err(error),
    };
    if !json {
        // Whether anybody still reads it does not matter now.
        let _ = out::line("Stopping; Ctrl-C again stops at once");
    }
    let finished = tokio::select! {
        finished = supervisor.finish() => finished,
        () = signals.next() => bail!("stopped at once, on request"),
    };
    // Below the services, in the opposite order of their start.
    if let Some(demo) = demo {
        demo.stop().await;
    }
    if let Some(child) = child {
        child.stop().await;
    }
    outcome.and(finished)
}

/// What is known once everything below the services runs.
struct Start {
    settings: Settings,
    nats_pid: Option<u32>,
    demo: bool,
    json: bool,
    data_dir: DataDir,
}

impl Start {
    /// Starts the services, shows the screen, and returns once one of their tasks has ended.
    async fn serve(
        mut self,
        listener: TcpListener,
        metrics: PrometheusHandle,
        supervisor: &Supervisor,
    ) -> anyhow::Result<()> {
        let client = nats::connect("up", &self.settings.nats).await?;
        let states = client.subscribe(subjects::ALL_BACKENDS).await.context("NATS takes no subscription")?;
        let (router, backends) = tokio::join!(
            services::build(&self.settings, &client, metrics, supervisor),
            probe::look(&self.settings.backends)
        );
        let address = server::serve(router?, listener, supervisor)?;
        let url = origin(address);
        self.data_dir.announce(Some(url.clone()))?;
        let comings = Comings::new(&backends);
        let screen = Screen {
            event: "ready",
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            docs: format!("{url}/docs"),
            websocket: format!("{}/ws/progress", url.replacen("http", "ws", 1)),
            listen: address,
            nats_url: nats_address(&client, &self.settings.nats),
            nats_pid: self.nats_pid,
            data_dir: self.data_dir.path().to_owned(),
            database: without_credentials(self.settings.database_url.expose_secret()),
            images: without_credentials(self.settings.images_url.as_str()),
            demo: self.demo,
            backends,
            url,
        };
        if self.json {
            out::json(&screen)?;
            supervisor.stopping().cancelled().await;
            return Ok(());
        }
        out::line(&screen.text())?;
        tokio::select! {
            () = supervisor.stopping().cancelled() => {}
            () = tell(states, comings) => {}
        }
        supervisor.stopping().cancelled().await;
        Ok(())
    }
}

/// Tells when backends come and go, for as long as somebody reads it.
async fn tell(mut states: async_nats::Subscriber, mut comings: Comings) {
    while let Some(message) = states.next().await {
        let Ok(state) = serde_json::from_slice::<BackendState>(&message.payload) else { continue };
        let Some(line) = comings.note(&state) else { continue };
        if out::line(&line).is_err() {
            return;
        }
    }
}

fn settings(
    args: &Up,
    data_dir: &DataDir,
    child: Option<&NatsChild>,
    demo: Option<&Demo>,
) -> anyhow::Result<Settings> {
    let database_url = args.database_url.clone().unwrap_or_else(|| data_dir.place().database_url().into());
    let images_url = match &args.images_url {
        Some(url) => url.clone(),
        None => data_dir.place().images_url()?,
    };
    let backends = demo.map_or_else(|| args.sdnext.clone(), |demo| demo.backends.clone());
    let weights_dir = data_dir.folder("weights")?;
    let nats = match child {
        Some(child) => NatsConfig::at(child.url()),
        None => args.nats()?,
    };
    let sections = args.sections.clone();
    Ok(Settings {
        database_url,
        images_url,
        weights_dir,
        backends,
        nats,
        embedded_nats: child.is_some(),
        sections,
    })
}

impl Up {
    /// Refuses values that can be read, but with which nothing would work.
    pub fn check(&self) -> anyhow::Result<()> {
        self.listen.check()?;
        self.check_settings()
    }

    /// As [`Self::check`], for who does not listen.
    pub fn check_settings(&self) -> anyhow::Result<()> {
        telemetry_config(self)?.check()?;
        self.nats()?.check()?;
        self.sections.section::<GatewayConfig>(&[])?.check()
    }

    /// How to reach a server that is not ours.
    pub fn nats(&self) -> anyhow::Result<NatsConfig> {
        let user = self.nats_user.clone().map(|user| ("nats-user", user));
        let password = self.nats_password.as_ref().map(|password| password.expose_secret().to_owned());
        let url = self.nats_url.clone().map(|url| ("nats-url", url));
        let decided: Vec<_> =
            url.into_iter().chain(user).chain(password.map(|password| ("nats-password", password))).collect();
        self.sections.section(&decided)
    }
}

/// The `nats-server` to start.
pub fn nats_program(args: &Up) -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir().context("there is no current directory")?;
    let ourselves = std::env::current_exe().context("the path of this program cannot be read")?;
    let search_path = args.surroundings.search_path.as_deref();
    nats_binary::find(args.nats_server.as_deref(), search_path, &here, &ourselves)
}

async fn start_nats(args: &Up, data_dir: &DataDir) -> anyhow::Result<NatsChild> {
    let program = nats_program(args)?;
    nats_binary::check_version(&program).await?;
    NatsChild::start(&program, &data_dir.folder("nats")?).await
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "another program listens on {address}. Stop it, or choose another address with --listen \
             (127.0.0.1:0 takes a free port)"
        ),
        _ => anyhow::Error::new(error).context(format!("cannot listen on {address}")),
    })
}

/// Where everything is kept.
pub fn data_path(args: &Up) -> anyhow::Result<PathBuf> {
    if let Some(path) = &args.data_dir {
        return Ok(path.clone());
    }
    let xdg = args.surroundings.xdg_data_home.as_deref();
    data_dir::default_path(xdg, std::env::home_dir(), args.demo)
}

/// On a terminal the log stays quiet, so that the screen stays readable; that a backend comes or goes is told there.
fn telemetry_config(args: &Up) -> anyhow::Result<TelemetryConfig> {
    let default = if std::io::stderr().is_terminal() {
        "warn,stepcast_poller::backend=error"
    } else {
        "info,async_nats=warn"
    };
    let log = args.log.clone().unwrap_or_else(|| default.to_owned());
    args.sections.section(&[("log", log)])
}

/// The address of the server in use; of several, the first one named.
fn nats_address(client: &Client, config: &NatsConfig) -> String {
    let first = config.nats_url.split(',').next().unwrap_or_default().trim();
    if first.is_empty() { client.server_info().server_name } else { without_credentials(first) }
}

async fn child_died(child: &mut Option<NatsChild>) -> anyhow::Error {
    match child {
        Some(child) => child.keep().await,
        None => std::future::pending().await,
    }
}

async fn demo_died(demo: &mut Option<Demo>) -> anyhow::Error {
    match demo {
        Some(demo) => demo.died().await,
        None => std::future::pending().await,
    }
}

/// Ctrl-C and SIGTERM, heard from the first moment on.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be listened to");
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Resolves at the next one. Cancel-safe.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_way_out() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind(address).await.unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
    }
}
