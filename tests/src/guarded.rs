//! Stepcast on one NATS node with the users of the deployment, for what other services may do.

use stepcast_sdnext_sim::Config;
use tempfile::TempDir;
use tokio::process::Command;

use crate::bus::{Bus, password};
use crate::client::Http;
use crate::process::{Process, binary};
use crate::sim::Sim;
use crate::tap::Tap;
use crate::wait::until;

/// An api, a poller and a simulated server, each with its own user.
pub struct Guarded {
    /// NATS.
    pub bus: Bus,
    /// The server that renders.
    pub sim: Sim,
    /// May do everything on NATS.
    pub operator: async_nats::Client,
    address: String,
    _services: [Process; 2],
    _folder: TempDir,
    _tap: Tap,
}

impl Guarded {
    /// Starts it, and waits until the server is spoken of.
    pub async fn start(simulated: Config) -> anyhow::Result<Self> {
        let (bus, folder) = (Bus::single().await?, tempfile::tempdir()?);
        let operator = stepcast_shared::nats::connect("operator", &bus.login("operator")).await?;
        let tap = Tap::start(&operator).await?;
        let sim = Sim::with(simulated).await?;
        let images = format!("file://{}/images", folder.path().display());
        let mut api = service(&bus, "api");
        api.env("STEPCAST_DATABASE_URL", format!("sqlite://{}/stepcast.db", folder.path().display()))
            .env("STEPCAST_IMAGES_URL", &images);
        let mut api = Process::start("api", &mut api)?;
        let address = api.address().await?;
        let mut poller = service(&bus, "poller");
        poller
            .env("STEPCAST_SDNEXT", format!("gpu={}", sim.url()))
            .env("STEPCAST_IMAGES_URL", &images)
            .env("STEPCAST_POSTS_PER_MINUTE", "0");
        let poller = Process::start("poller", &mut poller)?;
        let services = [api, poller];
        let all = Self { bus, sim, operator, address, _services: services, _folder: folder, _tap: tap };
        until("the backend is spoken of", async || {
            let answer = all.http().get("/generation/backends").await;
            (answer.json["backends"].as_array()?.len() == 1).then_some(())
        })
        .await;
        Ok(all)
    }

    /// HTTP to the api.
    pub fn http(&self) -> Http {
        Http::to(&self.address)
    }

    /// A client of NATS as this user.
    pub async fn client(&self, user: &'static str) -> async_nats::Client {
        stepcast_shared::nats::connect(user, &self.bus.login(user)).await.expect("the user may log in")
    }
}

fn service(bus: &Bus, user: &str) -> Command {
    let mut command = Command::new(binary(&format!("stepcast-{user}")));
    command
        .env("STEPCAST_NATS_URL", bus.url())
        .env("STEPCAST_NATS_USER", user)
        .env("STEPCAST_NATS_PASSWORD", password(user))
        .env("STEPCAST_LISTEN", "127.0.0.1:0")
        .env("STEPCAST_LOG_FORMAT", "json");
    command
}
