//! The servers that are compared, how each is started and fed, and what its clients say.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Value, json};
use stepcast_shared::ids::JobId;

use crate::client::Hello;
use crate::publisher::Feed;
use crate::scenario::Watch;
use crate::server::Server;
use crate::websocket::{self, TEXT};

/// A server to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// Stepcast's gateway.
    Gateway,
    /// Another build of it, named by --baseline.
    Baseline,
    /// A stock gateway: async-nats, axum's WebSocket, a task per client.
    Axum,
    /// The same with one NATS subscription to everything, which costs it every job that nobody watches.
    AxumEverything,
    /// Raw TCP, one write a message.
    Floor,
    /// Raw TCP, joined writes.
    FloorJoined,
}

/// What is needed to start servers.
#[derive(Debug)]
pub struct Setup {
    /// The gateway's binary.
    pub gateway: PathBuf,
    /// Another build of it.
    pub baseline: Option<PathBuf>,
    /// Further arguments for both.
    pub gateway_args: Vec<String>,
    /// The broker's address.
    pub nats_url: String,
    /// The broker's port.
    pub nats_port: u16,
    /// Whether servers may write to standard error.
    pub verbose: bool,
}

/// A server that listens.
#[derive(Debug)]
pub struct Started {
    /// Its process.
    pub server: Server,
    /// Where clients connect.
    pub address: SocketAddr,
    /// How messages reach it.
    pub feed: Feed,
}

impl Peer {
    /// Its name in the report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Gateway => "**Stepcast gateway**",
            Self::Baseline => "Stepcast gateway (baseline)",
            Self::Axum => "async-nats + axum, a subscription per job",
            Self::AxumEverything => "async-nats + axum, one subscription to everything",
            Self::Floor => "floor: raw TCP, one write a message",
            Self::FloorJoined => "floor: raw TCP, joined writes",
        }
    }

    /// Whether it is nothing but its sockets.
    pub fn is_floor(self) -> bool {
        matches!(self, Self::Floor | Self::FloorJoined)
    }

    /// Starts it, and waits until it listens.
    pub fn start(self, setup: &Setup) -> anyhow::Result<Started> {
        match self {
            Self::Gateway => gateway(setup, &setup.gateway),
            Self::Baseline => gateway(setup, setup.baseline.as_ref().context("no --baseline is named")?),
            Self::Axum => own(setup, &["axum", "--nats-url", &setup.nats_url]),
            Self::AxumEverything => {
                own(setup, &["axum", "--nats-url", &setup.nats_url, "--subscriptions", "everything"])
            }
            Self::Floor => own(setup, &["floor"]),
            Self::FloorJoined => own(setup, &["floor", "--joined"]),
        }
    }

    /// What a client of it says to watch `job`, or all jobs, of which `active` are known.
    pub fn hello(self, watch: Watch, job: JobId, active: u32) -> Hello {
        if self.is_floor() {
            let topic = if watch == Watch::All { "*".to_owned() } else { job.to_string() };
            let subscribe = format!("{topic}\n").into_bytes();
            return Hello { request: Vec::new(), subscribe, confirmed: true, snapshots: 0 };
        }
        let ids = if watch == Watch::All { Value::Null } else { json!([job]) };
        let message = json!({"type": "subscribe", "job_ids": ids}).to_string();
        let mut subscribe = Vec::new();
        websocket::client_frame(TEXT, message.as_bytes(), &mut subscribe);
        let snapshots = match self {
            Self::Gateway | Self::Baseline => {
                if watch == Watch::All {
                    active
                } else {
                    1
                }
            }
            _ => 0,
        };
        let request = websocket::handshake("127.0.0.1", "/ws/progress");
        Hello { request, subscribe, confirmed: true, snapshots }
    }
}

fn gateway(setup: &Setup, binary: &PathBuf) -> anyhow::Result<Started> {
    let mut command = Command::new(binary);
    command.args(["--listen", "127.0.0.1:0", "--log-format", "json", "--nats-url", &setup.nats_url]);
    // By environment, which a build without the setting ignores.
    command.env("STEPCAST_GATEWAY_MAX_CONNECTIONS", "200000");
    command.args(&setup.gateway_args);
    let mut server = Server::start("stepcast-gateway", &mut command, setup.verbose)?;
    let address = server.line(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        line["fields"]["address"].as_str()?.parse().ok()
    })?;
    Ok(Started { server, address, feed: Feed::Nats(setup.nats_port) })
}

/// One of the servers in this binary.
fn own(setup: &Setup, arguments: &[&str]) -> anyhow::Result<Started> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("serve").args(arguments);
    ready(Server::start(arguments[0], &mut command, setup.verbose)?, setup)
}

/// Waits for `ready <port for clients> <port for the feed>`; a server without a feed of its own reads from NATS.
fn ready(mut server: Server, setup: &Setup) -> anyhow::Result<Started> {
    let (port, feed) = server.line(|line| {
        let (port, feed) = line.strip_prefix("ready ")?.split_once(' ')?;
        Some((port.parse::<u16>().ok()?, feed.parse::<u16>().ok()?))
    })?;
    let feed = if feed == 0 { Feed::Nats(setup.nats_port) } else { Feed::Records(feed) };
    Ok(Started { server, address: ([127, 0, 0, 1], port).into(), feed })
}
