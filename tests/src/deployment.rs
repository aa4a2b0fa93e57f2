//! Stepcast as it is deployed, without containers: NATS and nginx with the configuration of `deploy`, PostgreSQL, and
//! every service as a process with the user that it has there.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use stepcast_sdnext_sim::{Config, Truth};
use tempfile::TempDir;
use tokio::process::Command;

use crate::bus::{Bus, NODES, password};
use crate::client::Http;
use crate::cluster::standing;
use crate::edge::Edge;
use crate::postgres::Postgres;
use crate::process::{Process, binary};
use crate::sim::Sim;
use crate::tap::Tap;
use crate::wait::{until, until_after};

/// Replicas of the api.
pub const APIS: usize = 2;
/// Replicas of the gateway.
pub const GATEWAYS: usize = 3;
/// Replicas of the poller, all with the same list of servers.
pub const POLLERS: usize = 2;
/// Simulated servers.
pub const BACKENDS: usize = 4;

/// How long a NATS node may take to catch up with the others.
const CAUGHT_UP: Duration = Duration::from_mins(2);
/// Everything that is kept in three copies.
const STREAMS: [&str; 5] =
    ["STEPCAST_EVENTS", "STEPCAST_BACKENDS", "STEPCAST_DEAD", "KV_stepcast_leases", "KV_stepcast_inflight"];

/// A service of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Api(usize),
    Gateway(usize),
    Poller(usize),
}

/// Everything that runs.
pub struct Deployment {
    /// NATS.
    pub bus: Bus,
    /// The database.
    pub postgres: Postgres,
    /// The door.
    pub edge: Edge,
    /// The servers that render.
    pub sims: Vec<Sim>,
    services: BTreeMap<Part, Process>,
    /// The second and third number of its addresses, so that several deployments find room beside each other.
    network: (u8, u8),
    folder: TempDir,
    _tap: Tap,
}

impl Deployment {
    /// Starts everything but the last gateway; `None` where PostgreSQL is not installed.
    pub async fn start(simulated: &Config) -> anyhow::Result<Option<Self>> {
        let Some(postgres) = Postgres::start().await? else { return Ok(None) };
        let network = (rand::random_range(1..=254), rand::random_range(1..=254));
        let free = std::net::TcpListener::bind((address(network, Part::Api(0)), 0))?.local_addr()?.port();
        let edge = Edge::start(free).await?;
        let mut sims = Vec::new();
        for _ in 0..BACKENDS {
            sims.push(Sim::with(simulated.clone()).await?);
        }
        let bus = Bus::cluster().await?;
        let operator = stepcast_shared::nats::connect("operator", &bus.login("operator")).await?;
        let tap = Tap::start(&operator).await?;
        let (services, folder) = (BTreeMap::new(), tempfile::tempdir()?);
        let mut all = Self { bus, postgres, edge, sims, services, network, folder, _tap: tap };
        // Only an api may make the streams; whoever came earlier would wait for it, and be refused meanwhile.
        for part in apis().chain(pollers()).chain(gateways().take(GATEWAYS - 1)) {
            all.launch(part).await?;
        }
        all.find(APIS, GATEWAYS - 1);
        all.wait_for_copies().await;
        Ok(Some(all))
    }

    /// Starts the last gateway, and lets the edge find it.
    pub async fn scale_out(&mut self) -> anyhow::Result<()> {
        self.launch(Part::Gateway(GATEWAYS - 1)).await?;
        self.find(APIS, GATEWAYS);
        Ok(())
    }

    /// Restarts each process, one after the other, as an upgrade does.
    pub async fn restart_everything(&mut self) -> anyhow::Result<()> {
        for node in 0..NODES {
            self.bus.node(node).signal(Signal::TERM);
            self.bus.node(node).end().await;
            self.bus.start_node(node).await?;
            // As an orchestrator would: the next one has its turn once this one has caught up.
            self.bus.wait_until_healthy(node).await;
            self.wait_for_copies().await;
        }
        for part in apis().chain(gateways()).chain(pollers()) {
            let service = self.services.get_mut(&part).context("it was started")?;
            service.signal(Signal::TERM);
            let status = service.end().await;
            ensure!(status.success(), "{part:?} ended with {status}: {}", service.output());
            self.launch(part).await?;
        }
        self.postgres.stop().await;
        self.postgres.start_again().await?;
        self.edge.restart().await
    }

    /// HTTP through the edge.
    pub fn http(&self) -> Http {
        Http::to(&self.edge.address())
    }

    /// HTTP to one replica, for its health and metrics.
    pub fn replica(&self, part: Part) -> Http {
        Http::to(&self.edge.replica(address(self.network, part)))
    }

    /// What really happened inside the servers.
    pub fn truths(&self) -> Vec<Truth> {
        self.sims.iter().map(Sim::truth).collect()
    }

    /// Panics if a service has ended by itself.
    pub fn assert_running(&mut self) {
        for (part, service) in &mut self.services {
            assert!(service.is_running(), "{part:?} has ended by itself");
        }
    }

    fn find(&self, replicas_of_api: usize, replicas_of_gateway: usize) {
        let addresses =
            |parts: Vec<Part>| parts.into_iter().map(|part| address(self.network, part)).collect::<Vec<_>>();
        self.edge.find("api", &addresses(apis().take(replicas_of_api).collect()));
        self.edge.find("gateway", &addresses(gateways().take(replicas_of_gateway).collect()));
    }

    /// Waits until every stream has three copies that are up to date, as one would before the next node is stopped.
    async fn wait_for_copies(&self) {
        let operator = stepcast_shared::nats::connect("operator", &self.bus.login("operator")).await;
        let operator = operator.expect("an operator may log in");
        for stream in STREAMS {
            until_after(CAUGHT_UP, &format!("{stream} has three copies"), async || {
                standing(&operator, stream).await.ok().flatten().filter(|(copies, _)| *copies == NODES)
            })
            .await;
        }
    }

    async fn launch(&mut self, part: Part) -> anyhow::Result<()> {
        let mut process = Process::start(&format!("{part:?}"), &mut self.command(part))?;
        process.address().await?;
        self.services.insert(part, process);
        if !matches!(part, Part::Poller(_)) {
            let replica = self.replica(part);
            until(&format!("{part:?} is ready"), async || {
                (replica.get("/health/ready").await.status == 200).then_some(())
            })
            .await;
        }
        Ok(())
    }

    fn command(&self, part: Part) -> Command {
        let user = match part {
            Part::Api(_) => "api",
            Part::Gateway(_) => "gateway",
            Part::Poller(_) => "poller",
        };
        let mut command = Command::new(binary(&format!("stepcast-{user}")));
        command
            .env("STEPCAST_NATS_URL", self.bus.url())
            .env("STEPCAST_NATS_USER", user)
            .env("STEPCAST_NATS_PASSWORD", password(user))
            .env("STEPCAST_LISTEN", self.edge.replica(address(self.network, part)))
            .env("STEPCAST_LOG_FORMAT", "json");
        let images = format!("file://{}/images", self.folder.path().display());
        match part {
            Part::Api(_) => {
                command.env("STEPCAST_DATABASE_URL", self.postgres.url()).env("STEPCAST_IMAGES_URL", images);
            }
            Part::Gateway(_) => {
                // As in compose, where every client's address is the edge's own.
                command.env("STEPCAST_GATEWAY_TRUST_FORWARDED_FOR", "true");
            }
            Part::Poller(_) => {
                let sims = self.sims.iter().enumerate();
                let sims: Vec<String> = sims.map(|(n, sim)| format!("gpu-{n}={}", sim.url())).collect();
                command.env("STEPCAST_SDNEXT", sims.join(",")).env("STEPCAST_IMAGES_URL", images);
                // Renders here are far shorter than the limiter expects.
                command.env("STEPCAST_POSTS_PER_MINUTE", "0");
            }
        }
        command
    }
}

/// Every replica of the api.
pub fn apis() -> impl Iterator<Item = Part> {
    (0..APIS).map(Part::Api)
}

/// Every replica of the gateway.
pub fn gateways() -> impl Iterator<Item = Part> {
    (0..GATEWAYS).map(Part::Gateway)
}

/// Every replica of the poller.
pub fn pollers() -> impl Iterator<Item = Part> {
    (0..POLLERS).map(Part::Poller)
}

/// Where a replica is found: replicas of one service share a port, so each has an address of its own.
fn address((a, b): (u8, u8), part: Part) -> Ipv4Addr {
    let (first, replica) = match part {
        Part::Api(replica) => (10, replica),
        Part::Gateway(replica) => (30, replica),
        Part::Poller(replica) => (50, replica),
    };
    Ipv4Addr::new(127, a, b, first + u8::try_from(replica).expect("few replicas"))
}
