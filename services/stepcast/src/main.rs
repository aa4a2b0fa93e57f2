//! Stepcast for people: everything on one machine, and its command line.

use std::process::ExitCode;

use stepcast::cli::{Cli, Command};
use stepcast_shared::config;

fn main() -> ExitCode {
    let cli: Cli = config::parse();
    if let Command::NatsChild(args) = &cli.command {
        return stepcast::report(&stepcast::nats_child::become_server(args), false);
    }
    let json = cli.json;
    match tokio::runtime::Runtime::new()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(stepcast::run(cli)))
    {
        Ok(exit) => exit.into(),
        Err(error) => stepcast::report(&error, json),
    }
}
