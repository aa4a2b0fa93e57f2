//! The api as a process.

use stepcast_api::Config;
use stepcast_shared::shutdown::Supervisor;
use stepcast_shared::{config, telemetry};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config: Config = config::parse();
    let telemetry = telemetry::init("stepcast-api", &config.telemetry)?;
    let listener = TcpListener::bind(config.listen.listen).await?;
    let supervisor = Supervisor::new(config.listen.shutdown_grace);
    stepcast_api::start(config, listener, telemetry.metrics.clone(), &supervisor).await?;
    supervisor.run().await
}
