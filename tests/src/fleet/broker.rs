//! The broker of a fleet: one NATS server, or a cluster of three.

use rustix::process::Signal;

use crate::cluster::NatsCluster;
use crate::nats::NatsServer;

/// NATS.
pub(super) enum Broker {
    One(Box<NatsServer>),
    Cluster(NatsCluster),
}

impl Broker {
    /// Starts as many servers: one or three.
    pub async fn start(servers: usize) -> anyhow::Result<Self> {
        match servers {
            1 => Ok(Self::One(Box::new(NatsServer::start().await?))),
            3 => Ok(Self::Cluster(NatsCluster::start().await?)),
            other => anyhow::bail!("{other} servers are neither one nor a cluster"),
        }
    }

    /// The addresses of its servers, `nats://host:port`, separated by commas.
    pub fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    /// Kills one server.
    pub async fn kill(&mut self, index: usize) {
        let process = match self {
            Self::One(server) => server.process(),
            Self::Cluster(cluster) => cluster.server(index),
        };
        process.signal(Signal::KILL);
        process.end().await;
    }

    /// Starts it again where it was.
    pub async fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        match self {
            Self::One(server) => server.restart().await,
            Self::Cluster(cluster) => cluster.start_server(index).await,
        }
    }
}
