//! Simulated SD.Next servers on real sockets, whose truth the test can read.

use std::time::Duration;

use stepcast_sdnext_sim::{Config, Handle, Truth};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A simulated server.
pub struct Sim {
    /// Its inner truth, and its faults.
    pub handle: Handle,
    address: std::net::SocketAddr,
    _stop: tokio_util::sync::DropGuard,
    _server: JoinSet<anyhow::Result<()>>,
}

impl Sim {
    /// A server that takes so long for a step of 512 x 512, and has no request limit.
    pub async fn start(step_time: Duration) -> anyhow::Result<Self> {
        Self::with(Config { step_time, rate_limit: 0, ..Config::default() }).await
    }

    /// A server of any configuration.
    pub async fn with(config: Config) -> anyhow::Result<Self> {
        Self::at("127.0.0.1:0", config).await
    }

    /// A server of any configuration at a given address, as one that was rebooted. Errors while that is in use.
    pub async fn at(address: &str, config: Config) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (router, handle) = stepcast_sdnext_sim::build(config);
        let stop = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(stepcast_sdnext_sim::serve(router, handle.clone(), listener, stop.clone()));
        Ok(Self { handle, address, _stop: stop.drop_guard(), _server: server })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its address, `host:port`.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// What really happens inside.
    pub fn truth(&self) -> Truth {
        self.handle.truth()
    }
}
