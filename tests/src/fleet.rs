//! Stepcast scaled out, to be broken: every process can be killed or frozen, every link between two parts cut.
//!
//! All links are proxies whose ports stay, so that whatever is started again is found where it was.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use stepcast_sdnext_sim::{Config, Handle, Truth};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

use crate::nats::NatsServer;
use crate::process::{Process, binary};
use crate::proxy::{Mode, Proxy};
use crate::sim::Sim;

/// Simulated servers.
pub const BACKENDS: usize = 4;
/// Pollers, all with the same list of servers.
pub const POLLERS: usize = 2;
/// Gateways.
pub const GATEWAYS: usize = 2;

/// Starts of one service until it counts as broken.
const START_TRIES: u32 = 10;

/// A process of ours, or the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Nats,
    Api,
    Gateway(usize),
    Poller(usize),
}

/// What lies between two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    /// From a service to NATS.
    Bus(Part),
    /// From a poller to a simulated server.
    Backend { poller: usize, backend: usize },
    /// From clients to the api.
    Http,
    /// From clients to a gateway.
    Socket(usize),
}

/// The whole system. Each part is locked while something is done to it.
pub struct Fleet {
    nats: Mutex<NatsServer>,
    services: BTreeMap<Part, Mutex<Service>>,
    links: BTreeMap<Link, Proxy>,
    sims: Vec<Mutex<Lives>>,
    folder: TempDir,
}

/// A service, and what it has been before.
struct Service {
    running: Process,
    /// Their output explains a failure.
    earlier: Vec<Process>,
}

/// A simulated server, and what it has been before: earlier lives keep their truth.
pub struct Lives {
    /// The server of now.
    pub now: Sim,
    earlier: Vec<Handle>,
    config: Config,
}

impl Fleet {
    /// Starts everything, with simulated servers of this configuration.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let nats = NatsServer::start().await?;
        let folder = tempfile::tempdir()?;
        let bus = nats.url().trim_start_matches("nats://").to_owned();
        let mut sims = Vec::new();
        for _ in 0..BACKENDS {
            let now = Sim::with(config.clone()).await?;
            sims.push(Lives { now, earlier: Vec::new(), config: config.clone() });
        }
        let mut links = BTreeMap::new();
        for part in services() {
            links.insert(Link::Bus(part), Proxy::to(&bus).await?);
        }
        for poller in 0..POLLERS {
            for (backend, sim) in sims.iter().enumerate() {
                links.insert(Link::Backend { poller, backend }, Proxy::to(&sim.now.address()).await?);
            }
        }
        for link in [Link::Http].into_iter().chain((0..GATEWAYS).map(Link::Socket)) {
            links.insert(link, Proxy::to("127.0.0.1:9").await?);
        }
        let sims = sims.into_iter().map(Mutex::new).collect();
        let mut fleet = Self { nats: Mutex::new(nats), services: BTreeMap::new(), links, sims, folder };
        for part in services() {
            let running = fleet.launch(part).await?;
            fleet.services.insert(part, Mutex::new(Service { running, earlier: Vec::new() }));
        }
        Ok(fleet)
    }

    /// Where clients reach the api, `host:port`.
    pub fn http_address(&self) -> String {
        self.links[&Link::Http].address()
    }

    /// Where clients reach a gateway, `host:port`.
    pub fn socket_address(&self, gateway: usize) -> String {
        self.links[&Link::Socket(gateway)].address()
    }

    /// Where NATS itself listens, behind no link.
    pub async fn nats_url(&self) -> String {
        self.nats.lock().await.url()
    }

    /// The database, for reading.
    pub fn database_url(&self) -> String {
        format!("sqlite://{}/stepcast.db", self.folder.path().display())
    }

    /// Kills a part, and starts it again after `away`.
    pub async fn kill(&self, part: Part, away: Duration) {
        if part == Part::Nats {
            let mut nats = self.nats.lock().await;
            nats.process().signal(Signal::KILL);
            nats.process().end().await;
            sleep(away).await;
            nats.restart().await.expect("nats-server starts where it was");
            return;
        }
        let mut service = self.services[&part].lock().await;
        service.running.signal(Signal::KILL);
        service.running.end().await;
        sleep(away).await;
        let next = self.launch(part).await.expect("a killed service starts again");
        let ended = std::mem::replace(&mut service.running, next);
        service.earlier.push(ended);
    }

    /// Stops a part without its knowing, for as long as `still`.
    pub async fn freeze(&self, part: Part, still: Duration) {
        let service = self.services[&part].lock().await;
        service.running.signal(Signal::STOP);
        sleep(still).await;
        service.running.signal(Signal::CONT);
    }

    /// Changes a link for as long as `lasts`.
    pub async fn disturb(&self, link: Link, mode: Mode, lasts: Duration) {
        self.links[&link].set(mode);
        sleep(lasts).await;
        self.links[&link].set(Mode::Pass);
    }

    /// Kills a simulated server, and starts a fresh one in its place after `away`.
    pub async fn kill_backend(&self, backend: usize, away: Duration) {
        let mut lives = self.sims[backend].lock().await;
        lives.now.handle.kill();
        sleep(away).await;
        let next = Sim::with(lives.config.clone()).await.expect("a simulated server starts");
        for poller in 0..POLLERS {
            self.links[&Link::Backend { poller, backend }].retarget(&next.address());
        }
        let ended = std::mem::replace(&mut lives.now, next);
        lives.earlier.push(ended.handle);
    }

    /// A simulated server, kept from anything else for as long as the guard is held.
    pub async fn backend(&self, backend: usize) -> MutexGuard<'_, Lives> {
        self.sims[backend].lock().await
    }

    /// The truth of every life of every simulated server.
    pub async fn truths(&self) -> Vec<Truth> {
        let mut truths = Vec::new();
        for lives in &self.sims {
            let lives = lives.lock().await;
            truths.extend(lives.earlier.iter().map(Handle::truth));
            truths.push(lives.now.truth());
        }
        truths
    }

    /// Panics if a service has ended by itself.
    pub async fn assert_running(&self) {
        for (part, service) in &self.services {
            assert!(service.lock().await.running.is_running(), "{part:?} has ended by itself");
        }
    }

    /// Starts a service until it stays: one that finds no broker in time ends, and whoever runs it starts it again.
    async fn launch(&self, part: Part) -> anyhow::Result<Process> {
        let mut tries = 1;
        let (process, address) = loop {
            let mut process = Process::start(&format!("{part:?}"), &mut self.command(part))?;
            match process.address().await {
                Ok(address) => break (process, address),
                Err(error) if tries == START_TRIES => return Err(error),
                Err(_) => tries += 1,
            }
        };
        match part {
            Part::Api => self.links[&Link::Http].retarget(&address),
            Part::Gateway(gateway) => self.links[&Link::Socket(gateway)].retarget(&address),
            Part::Nats | Part::Poller(_) => {}
        }
        Ok(process)
    }

    fn command(&self, part: Part) -> Command {
        let name = match part {
            Part::Nats => unreachable!("the broker is no service of ours"),
            Part::Api => "stepcast-api",
            Part::Gateway(_) => "stepcast-gateway",
            Part::Poller(_) => "stepcast-poller",
        };
        let mut command = Command::new(binary(name));
        let images = format!("file://{}/images", self.folder.path().display());
        command
            .env("STEPCAST_NATS_URL", format!("nats://{}", self.links[&Link::Bus(part)].address()))
            .env("STEPCAST_LISTEN", "127.0.0.1:0")
            .env("STEPCAST_LOG_FORMAT", "json");
        match part {
            Part::Api => {
                command.env("STEPCAST_DATABASE_URL", self.database_url()).env("STEPCAST_IMAGES_URL", images);
            }
            Part::Poller(poller) => {
                let backends: Vec<String> = (0..BACKENDS)
                    .map(|backend| {
                        let link = &self.links[&Link::Backend { poller, backend }];
                        format!("gpu-{backend}=http://{}", link.address())
                    })
                    .collect();
                command.env("STEPCAST_SDNEXT", backends.join(",")).env("STEPCAST_IMAGES_URL", images);
                // Renders here are far shorter than the limiter expects.
                command.env("STEPCAST_POSTS_PER_MINUTE", "0");
            }
            Part::Gateway(_) | Part::Nats => {}
        }
        command
    }
}

/// Every service of ours, in the order in which they start.
pub fn services() -> impl Iterator<Item = Part> {
    [Part::Api].into_iter().chain((0..GATEWAYS).map(Part::Gateway)).chain((0..POLLERS).map(Part::Poller))
}
