//! What stands behind a gateway: a real `nats-server`, recorded jobs, and answers to the requests that api would get.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::Client;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;
use stepcast_shared::config::NatsConfig;
use stepcast_shared::events::{self, LifecycleEvent};
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::messages::JobMessage;
use stepcast_shared::rpc::{self, ActiveAnswer, LastAnswer};
use stepcast_shared::{nats, subjects};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::message;
use crate::server::Server;

/// Events recorded at once.
const IN_FLIGHT: usize = 64;

/// Broker, jobs and answers; all of it ends when dropped.
#[derive(Debug)]
pub struct Backdrop {
    /// The broker.
    pub broker: Server,
    /// Its port.
    pub port: u16,
    /// Jobs that have started, as the event stream knows.
    pub jobs: Vec<JobId>,
    active: Arc<AtomicUsize>,
    client: Client,
    answering: Option<Runtime>,
    _folder: TempDir,
}

impl Backdrop {
    /// Starts the broker, makes the streams, and records that so many jobs have started.
    pub fn start(binary: &Path, jobs: usize, verbose: bool) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let ports = folder.path().join("ports");
        std::fs::create_dir_all(&ports)?;
        let mut command = Command::new(binary);
        command.args(["-a", "127.0.0.1", "-p", "-1", "-js", "-sd"]).arg(folder.path().join("jetstream"));
        command.arg("--ports_file_dir").arg(&ports);
        let broker = Server::start("nats-server", &mut command, verbose)?;
        let port = self::ports(&ports)?.nats;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(async {
            let client = nats::connect("bench", &NatsConfig::at(format!("nats://127.0.0.1:{port}"))).await?;
            nats::prepare(&client).await?;
            anyhow::Ok(client)
        })?;
        let jobs: Vec<JobId> = (0..jobs).map(|_| JobId::mint()).collect();
        runtime.block_on(record(&client, &jobs))?;
        let active = Arc::new(AtomicUsize::new(0));
        #[expect(clippy::disallowed_methods, reason = "the runtime owns it, and ends with the backdrop")]
        {
            let _entered = runtime.enter();
            tokio::spawn(answer(client.clone(), jobs.clone(), Arc::clone(&active)));
        }
        Ok(Self { broker, port, jobs, active, client, answering: Some(runtime), _folder: folder })
    }

    /// The first so many jobs are those that api would call active.
    pub fn set_active(&self, jobs: usize) {
        self.active.store(jobs, Relaxed);
    }

    /// Consumers that JetStream keeps now, of all streams.
    pub fn consumers(&self) -> anyhow::Result<usize> {
        let runtime = self.answering.as_ref().context("it has not ended")?;
        runtime.block_on(async {
            let context = async_nats::jetstream::new(self.client.clone());
            let counts = context.streams().map_ok(|stream| stream.state.consumer_count);
            Ok(counts.try_fold(0, |sum, count| async move { Ok(sum + count) }).await?)
        })
    }

    /// The broker's address.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for Backdrop {
    fn drop(&mut self) {
        if let Some(runtime) = self.answering.take() {
            runtime.shutdown_background();
        }
    }
}

/// Where the broker is if nobody says: where `make` puts it, or on the path.
pub fn broker_binary() -> PathBuf {
    let installed = Path::new(".venv/bin/nats-server");
    if installed.exists() { installed.into() } else { "nats-server".into() }
}

/// Where a `nats-server` listens.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// For its own protocol.
    pub nats: u16,
    /// For the same in a WebSocket.
    pub websocket: Option<u16>,
}

/// Waits until a `nats-server` has told its ports in this folder.
pub fn ports(folder: &Path) -> anyhow::Result<Ports> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(ports) = read_ports(folder) {
            return Ok(ports);
        }
        anyhow::ensure!(Instant::now() < deadline, "nats-server does not listen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn read_ports(folder: &Path) -> Option<Ports> {
    let file = std::fs::read_dir(folder).ok()?.next()?.ok()?;
    let ports: Value = serde_json::from_slice(&std::fs::read(file.path()).ok()?).ok()?;
    let port = |kind: &str| ports[kind][0].as_str()?.rsplit(':').next()?.parse().ok();
    Some(Ports { nats: port("nats")?, websocket: port("websocket") })
}

async fn record(client: &Client, jobs: &[JobId]) -> anyhow::Result<()> {
    let context = async_nats::jetstream::new(client.clone());
    stream::iter(jobs)
        .map(|job| {
            let started = JobMessage::Started(message::started(*job, 1));
            let event = LifecycleEvent::new(Owner::anonymous(), started, "bench".to_owned(), 0);
            let context = &context;
            async move { events::record(context, &event).await.context("a job cannot be recorded") }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) })
        .await
}

/// Answers as api would whose database holds just these jobs.
async fn answer(client: Client, jobs: Vec<JobId>, active: Arc<AtomicUsize>) -> anyhow::Result<()> {
    let actives = client.subscribe(subjects::rpc(rpc::ACTIVE)).await?;
    let lasts = client.subscribe(subjects::rpc(rpc::LAST)).await?;
    let mut requests = stream::select(actives.map(|it| (true, it)), lasts.map(|it| (false, it)));
    while let Some((is_active, request)) = requests.next().await {
        let Some(reply) = request.reply else { continue };
        let answer = if is_active {
            let jobs = jobs.iter().take(active.load(Relaxed)).copied().collect();
            serde_json::to_vec(&ActiveAnswer { jobs, truncated: false })?
        } else {
            serde_json::to_vec(&LastAnswer { jobs: Vec::new() })?
        };
        client.publish(reply, answer.into()).await?;
    }
    Ok(())
}
