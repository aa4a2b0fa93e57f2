//! Stepcast scaled out, to be broken: every process can be killed or frozen, every link between two parts cut.
//!
//! All links are proxies whose ports stay, so that whatever is started again is found where it was.

mod broker;
mod shape;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use stepcast_sdnext_sim::{Config, Handle, Truth};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

use self::broker::Broker;
pub use self::shape::{BACKENDS, Link, Part, Shape};
use crate::postgres::{self, Postgres};
use crate::process::{Process, binary};
use crate::proxy::{Mode, Proxy};
use crate::sim::Sim;

/// Starts of one service until it counts as broken.
const START_TRIES: u32 = 10;

/// The whole system. Each part is locked while something is done to it.
pub struct Fleet {
    shape: Shape,
    broker: Mutex<Broker>,
    postgres: Option<Mutex<Postgres>>,
    services: BTreeMap<Part, Mutex<Service>>,
    /// One proxy for each link, but one for each server of NATS for those to the bus.
    links: BTreeMap<Link, Vec<Proxy>>,
    sims: Vec<Mutex<Lives>>,
    database_url: String,
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
    /// Starts everything small, with simulated servers of this configuration.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let fleet = Self::start_as(Shape::SMALL, config).await?;
        fleet.context("a small fleet needs nothing that may be missing")
    }

    /// Starts everything, with simulated servers of this configuration; `None` where there is no PostgreSQL for it.
    pub async fn start_as(shape: Shape, config: &Config) -> anyhow::Result<Option<Self>> {
        let postgres = if shape.postgres { Postgres::start().await? } else { None };
        if shape.postgres && postgres.is_none() {
            return Ok(None);
        }
        let broker = Broker::start(shape.nats).await?;
        let folder = tempfile::tempdir()?;
        let mut sims = Vec::new();
        for _ in 0..BACKENDS {
            let now = Sim::with(config.clone()).await?;
            sims.push(Lives { now, earlier: Vec::new(), config: config.clone() });
        }
        let mut links = BTreeMap::new();
        for link in shape.links() {
            let mut proxies = Vec::new();
            for target in targets(link, &broker, postgres.as_ref()) {
                proxies.push(Proxy::to(&target).await?);
            }
            links.insert(link, proxies);
        }
        for poller in 0..shape.pollers {
            for (backend, sim) in sims.iter().enumerate() {
                let proxy = Proxy::to(&sim.now.address()).await?;
                links.insert(Link::Backend { poller, backend }, vec![proxy]);
            }
        }
        let database_url = match &postgres {
            Some(postgres) => postgres.url(),
            None => format!("sqlite://{}/stepcast.db", folder.path().display()),
        };
        let mut fleet = Self {
            shape,
            broker: Mutex::new(broker),
            postgres: postgres.map(Mutex::new),
            services: BTreeMap::new(),
            links,
            sims: sims.into_iter().map(Mutex::new).collect(),
            database_url,
            folder,
        };
        for part in shape.services() {
            let running = fleet.launch(part).await?;
            fleet.services.insert(part, Mutex::new(Service { running, earlier: Vec::new() }));
        }
        Ok(Some(fleet))
    }

    /// Where clients reach the first api, `host:port`.
    pub fn http_address(&self) -> String {
        self.link(Link::Http(0)).address()
    }

    /// Where clients reach the apis, `host:port`.
    pub fn http_addresses(&self) -> Vec<String> {
        (0..self.shape.apis).map(|api| self.link(Link::Http(api)).address()).collect()
    }

    /// Where clients reach a gateway, `host:port`.
    pub fn socket_address(&self, gateway: usize) -> String {
        self.link(Link::Socket(gateway)).address()
    }

    /// Where NATS itself listens, behind no link.
    pub async fn nats_url(&self) -> String {
        self.broker.lock().await.url()
    }

    /// The database, for reading.
    pub fn database_url(&self) -> String {
        self.database_url.clone()
    }

    fn link(&self, link: Link) -> &Proxy {
        &self.links[&link][0]
    }

    /// Kills a part, and starts it again after `away`.
    pub async fn kill(&self, part: Part, away: Duration) {
        match part {
            Part::Nats(server) => {
                let mut broker = self.broker.lock().await;
                broker.kill(server).await;
                sleep(away).await;
                broker.restart(server).await.expect("nats-server starts where it was");
            }
            Part::Database => {
                let mut postgres = self.postgres.as_ref().expect("there is one").lock().await;
                postgres.stop().await;
                sleep(away).await;
                postgres.start_again().await.expect("PostgreSQL starts where it was");
            }
            Part::Api(_) | Part::Gateway(_) | Part::Poller(_) => {
                let mut service = self.services[&part].lock().await;
                service.running.signal(Signal::KILL);
                service.running.end().await;
                sleep(away).await;
                let next = self.launch(part).await.expect("a killed service starts again");
                let ended = std::mem::replace(&mut service.running, next);
                service.earlier.push(ended);
            }
        }
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
        let set = |mode| self.links[&link].iter().for_each(|proxy| proxy.set(mode));
        set(mode);
        sleep(lasts).await;
        set(Mode::Pass);
    }

    /// Kills a simulated server, and starts a fresh one in its place after `away`.
    pub async fn kill_backend(&self, backend: usize, away: Duration) {
        let mut lives = self.sims[backend].lock().await;
        lives.now.handle.kill();
        sleep(away).await;
        let next = Sim::with(lives.config.clone()).await.expect("a simulated server starts");
        for poller in 0..self.shape.pollers {
            self.link(Link::Backend { poller, backend }).retarget(&next.address());
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
            Part::Api(api) => self.link(Link::Http(api)).retarget(&address),
            Part::Gateway(gateway) => self.link(Link::Socket(gateway)).retarget(&address),
            Part::Nats(_) | Part::Database | Part::Poller(_) => {}
        }
        Ok(process)
    }

    fn command(&self, part: Part) -> Command {
        let name = match part {
            Part::Nats(_) | Part::Database => unreachable!("this is no service of ours"),
            Part::Api(_) => "stepcast-api",
            Part::Gateway(_) => "stepcast-gateway",
            Part::Poller(_) => "stepcast-poller",
        };
        let mut command = Command::new(binary(name));
        let images = format!("file://{}/images", self.folder.path().display());
        let bus = &self.links[&Link::Bus(part)];
        let bus: Vec<String> = bus.iter().map(|proxy| format!("nats://{}", proxy.address())).collect();
        command
            .env("STEPCAST_NATS_URL", bus.join(","))
            .env("STEPCAST_LISTEN", "127.0.0.1:0")
            .env("STEPCAST_LOG_FORMAT", "json");
        match part {
            Part::Api(api) => {
                command
                    .env("STEPCAST_DATABASE_URL", self.database_of(api))
                    .env("STEPCAST_IMAGES_URL", images);
            }
            Part::Poller(poller) => {
                let backends: Vec<String> = (0..BACKENDS)
                    .map(|backend| {
                        let link = self.link(Link::Backend { poller, backend });
                        format!("gpu-{backend}=http://{}", link.address())
                    })
                    .collect();
                command.env("STEPCAST_SDNEXT", backends.join(",")).env("STEPCAST_IMAGES_URL", images);
                // Renders here are far shorter than the limiter expects.
                command.env("STEPCAST_POSTS_PER_MINUTE", "0");
            }
            Part::Gateway(_) | Part::Nats(_) | Part::Database => {}
        }
        command
    }

    /// The database as an api reaches it.
    fn database_of(&self, api: usize) -> String {
        match self.links.get(&Link::Database(api)) {
            Some(link) => postgres::url_behind(&link[0].address()),
            None => self.database_url(),
        }
    }
}

/// What a link leads to at first. A service that does not run yet is where nobody listens.
fn targets(link: Link, broker: &Broker, postgres: Option<&Postgres>) -> Vec<String> {
    match link {
        Link::Bus(_) => {
            let url = broker.url();
            url.split(',').map(|url| url.trim_start_matches("nats://").to_owned()).collect()
        }
        Link::Database(_) => postgres.map(Postgres::address).into_iter().collect(),
        Link::Http(_) | Link::Socket(_) | Link::Backend { .. } => vec!["127.0.0.1:9".to_owned()],
    }
}
