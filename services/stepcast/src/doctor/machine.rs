//! This machine, for the Stepcast that runs on one: its data directory, its NATS server, its port.

use std::net::TcpListener;

use anyhow::Context as _;
use url::Url;

use super::report::Report;
use super::storage;
use crate::cli::Up;
use crate::data_dir::Place;
use crate::nats_config::Files;
use crate::{leftover, nats_binary, up};

const PART: &str = "machine";

/// What was found of it.
#[derive(Debug)]
pub struct Machine {
    /// Where everything is kept.
    pub data_dir: Place,
    /// Its NATS server, if that runs.
    pub nats: Option<String>,
    /// Where it can be reached, if it runs.
    pub server: Option<Url>,
}

impl Machine {
    /// Looks at the machine. Errors if there is nowhere to look, or if what is there cannot be read.
    pub async fn look(args: &Up, report: &mut Report) -> anyhow::Result<Self> {
        let data_dir = Place::at(&up::data_path(args)?)?;
        let path = data_dir.path().to_owned();
        if path.is_dir() {
            storage::look_at_folder(PART, &path, report);
        } else {
            report.ok(PART, format!("{} does not exist yet: the first start makes it", path.display()));
            storage::look_at_ancestor(PART, &path, report);
        }
        let files = Files::within(&path.join("nats"));
        let nats = leftover::running(&files).and_then(|pid| files.addresses(pid)).map(|found| found.nats);
        if let Some(holder) = data_dir.holder() {
            report.ok(PART, format!("a Stepcast runs on it ({holder})"));
            let server = holder.url.as_deref().map(Url::parse).transpose();
            let server = server.context("the lock file of the data directory cannot be read")?;
            return Ok(Self { data_dir, nats, server });
        }
        look_at_program(args, report).await;
        look_at_port(args, report);
        if nats.is_some() {
            let message = "a nats-server of an earlier run is still there";
            report.warn(PART, message, "nothing to do: the next start stops it first");
        }
        Ok(Self { data_dir, nats: None, server: None })
    }
}

async fn look_at_program(args: &Up, report: &mut Report) {
    let found = match up::nats_program(args) {
        Ok(program) => nats_binary::check_version(&program).await.map(|version| (program, version)),
        Err(error) => Err(error),
    };
    match found {
        Ok((program, version)) => report.ok(PART, format!("{} is version {version}", program.display())),
        // These say what to do.
        Err(error) => report.wrong(PART, format!("{error:#}"), "install it, or name one with --nats-server"),
    }
}

fn look_at_port(args: &Up, report: &mut Report) {
    let address = args.listen.listen;
    match TcpListener::bind(address) {
        Ok(_) => report.ok(PART, format!("{address} is free")),
        Err(error) => {
            let advice = "stop what listens there, or choose another address with --listen";
            report.wrong(PART, format!("{address} cannot be listened on: {error}"), advice);
        }
    }
}
