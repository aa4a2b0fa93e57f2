//! The stand-in as a program of its own.

use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::Context as _;
use clap::Parser;
use stepcast_sdnext_sim::{Config, build, serve};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// A stand-in SD.Next: its HTTP API without its models.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, env = "SDNEXT_SIM_LISTEN", default_value = "127.0.0.1:7860")]
    listen: SocketAddr,
    /// What to log.
    #[arg(long, env = "SDNEXT_SIM_LOG", default_value = "warn")]
    log: String,
    #[command(flatten)]
    config: Config,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = EnvFilter::try_new(&cli.log).context("cannot read the log filter")?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();

    let mut interrupted = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let stopping = async move {
        tokio::select! { _ = interrupted.recv() => {}, _ = terminated.recv() => {} }
    };
    tokio::pin!(stopping);

    // Nothing listens while a server starts: clients are refused.
    tokio::select! {
        () = tokio::time::sleep(cli.config.scaled(cli.config.start_up_time)) => {}
        () = &mut stopping => return Ok(()),
    }
    let listener =
        TcpListener::bind(cli.listen).await.with_context(|| format!("cannot bind {}", cli.listen))?;
    let address = listener.local_addr().context("cannot read the address that is listened on")?;
    writeln!(std::io::stdout(), "listening on http://{address}")
        .context("cannot write to standard output")?;

    let (router, handle) = build(cli.config);
    let shutdown = CancellationToken::new();
    let serving = serve(router, handle.clone(), listener, shutdown.clone());
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => served?,
        () = &mut stopping => {
            shutdown.cancel();
            serving.await?;
        }
    }
    if handle.is_killed() {
        // What a process that was killed leaves behind as its exit code.
        std::process::exit(137);
    }
    Ok(())
}
