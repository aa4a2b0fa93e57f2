//! The gateway as a process of its own.

use anyhow::Context as _;
use stepcast_gateway::Config;
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{config, telemetry};
use tokio::net::TcpListener;

/// Messages live for some milliseconds and end in another order than they began: measured, the system's allocator
/// took a third of the fan-out's time (`docs/adr/0009-own-data-path.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: Config = config::parse();
    let telemetry = telemetry::init("stepcast-gateway", &config.telemetry)?;
    let listen = config.listen.listen;
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let supervisor = Supervisor::new(config.listen.shutdown_grace);
    stepcast_gateway::start(config, listener, telemetry.metrics.clone(), &supervisor).await?;
    supervisor.run().await
}
