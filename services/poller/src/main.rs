//! The poller as a process.

use stepcast_poller::Config;
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{config, telemetry};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: Config = config::parse();
    let telemetry = telemetry::init("stepcast-poller", &config.telemetry)?;
    let listener = TcpListener::bind(config.listen).await?;
    let supervisor = Supervisor::new(config.shutdown_grace);
    stepcast_poller::start(config, listener, telemetry.metrics.clone(), &supervisor).await?;
    supervisor.run().await
}
