//! The binary for people: `up` runs everything on one machine, the other commands talk to a running Stepcast.
//!
//! Nothing of Stepcast's own work is done here. `up` puts the services, a NATS server and a folder together
//! ([`up`]); the commands are an HTTP client ([`client`]) and a WebSocket client ([`watch`]) like any other.

mod backends;
mod bars;
pub mod cli;
pub mod client;
mod commands;
mod contracts;
mod data_dir;
mod demo;
mod doctor;
pub mod exit;
mod follow;
mod leftover;
mod lines;
mod nats_binary;
pub mod nats_child;
mod nats_config;
mod nats_health;
mod out;
mod probe;
mod screen;
pub mod sections;
mod services;
mod socket;
mod submit;
mod table;
pub mod up;
pub mod watch;

use std::process::ExitCode;

use crate::cli::{Cli, Command};
use crate::exit::Exit;

/// Does what the command line says.
pub async fn run(cli: Cli) -> anyhow::Result<Exit> {
    // Without a provider the first TLS client panics; an error only says that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let json = cli.json;
    match cli.command {
        Command::Up(args) => up::run(*args, json).await.map(|()| Exit::Done),
        Command::Doctor(args) => doctor::run(&args, json).await,
        Command::Submit(args) => submit::run(*args, json).await,
        Command::Watch(args) => watch::run(args, json).await,
        Command::Jobs(args) => commands::jobs(&args, json).await,
        Command::Get(args) => commands::get(&args, json).await,
        Command::Cancel(args) => commands::cancel(&args, json).await,
        Command::Backends(args) => backends::run(&args, json).await,
        Command::Contracts(args) => contracts::run(&args, json),
        Command::NatsChild(args) => Err(nats_child::become_server(&args)),
    }
}

/// Says what went wrong on standard error, and with which code to end.
pub fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    use std::io::Write as _;

    if !exit::is_closed_pipe(error) {
        let text = if json { client::error_json(error).to_string() } else { format!("stepcast: {error:#}") };
        // Nobody is left to tell if this fails.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
    Exit::of_error(error).into()
}
