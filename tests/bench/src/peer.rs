//! The servers that are compared, how each is started and fed, and what its clients say.

mod external;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use clap::ValueEnum;
use serde_json::{Value, json};
use stepcast_shared::ids::{JobId, Owner};
use stepcast_shared::subjects;
use tempfile::TempDir;

pub use self::external::versions;
use crate::client::{Hello, Speech};
use crate::publisher::{ALL, Feed};
use crate::scenario::Watch;
use crate::server::Server;
use crate::websocket::{self, BINARY, TEXT};

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
    /// nats-server's own WebSocket.
    Nats,
    /// nginx with nchan.
    Nchan,
    /// uWebSockets.js on Node.
    Uws,
    /// ws on Node.
    Ws,
    /// A connection manager on `FastAPI` and uvicorn.
    Fastapi,
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
    /// The broker's binary.
    pub nats_server: PathBuf,
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
    /// Its files, which go after it.
    _folder: Option<TempDir>,
}

impl Peer {
    /// Its name in the report.
    pub fn title(self) -> &'static str {
        match self {
            Self::Gateway => "**Stepcast gateway**",
            Self::Baseline => "Stepcast gateway (baseline)",
            Self::Axum => "async-nats + axum, a subscription per job",
            Self::AxumEverything => "async-nats + axum, one subscription to everything",
            Self::Nats => "nats-server's WebSocket",
            Self::Nchan => "nchan",
            Self::Uws => "uWebSockets.js",
            Self::Ws => "Node `ws`",
            Self::Fastapi => "FastAPI connection manager",
            Self::Floor => "floor: raw TCP, one write a message",
            Self::FloorJoined => "floor: raw TCP, joined writes",
        }
    }

    /// Whether it is Stepcast's.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Gateway | Self::Baseline)
    }

    /// Whether it is nothing but its sockets.
    pub fn is_floor(self) -> bool {
        matches!(self, Self::Floor | Self::FloorJoined)
    }

    /// Whether the broker stands before it.
    pub fn has_broker(self) -> bool {
        matches!(self, Self::Gateway | Self::Baseline | Self::Axum | Self::AxumEverything)
    }

    /// Starts it for clients that watch so, and waits until it listens.
    ///
    /// Errors with what to install if it is not there.
    pub fn start(self, setup: &Setup, watch: Watch) -> anyhow::Result<Started> {
        match self {
            Self::Gateway => gateway(setup, &setup.gateway),
            Self::Baseline => gateway(setup, setup.baseline.as_ref().context("no --baseline is named")?),
            Self::Axum => own(setup, &["axum", "--nats-url", &setup.nats_url]),
            Self::AxumEverything => {
                own(setup, &["axum", "--nats-url", &setup.nats_url, "--subscriptions", "everything"])
            }
            Self::Nats => external::nats(setup),
            Self::Nchan => external::nchan(setup, watch),
            Self::Uws => external::node(setup, "uws"),
            Self::Ws => external::node(setup, "ws"),
            Self::Fastapi => external::fastapi(setup),
            Self::Floor => own(setup, &["floor"]),
            Self::FloorJoined => own(setup, &["floor", "--joined"]),
        }
    }

    /// What a client of it says to watch `job`, or all jobs, of which `active` are known; progress of all jobs in
    /// batches if `batched`.
    pub fn hello(self, watch: Watch, job: JobId, active: u32, batched: bool) -> Hello {
        let all = watch == Watch::All;
        let topic = if all { ALL.to_owned() } else { job.to_string() };
        let speech = if self == Self::Nats { Speech::Nats } else { Speech::Messages };
        let silent = Hello {
            speech,
            request: Vec::new(),
            subscribe: Vec::new(),
            confirmed: !matches!(self, Self::Nchan),
            snapshots: 0,
        };
        match self {
            Self::Floor | Self::FloorJoined => Hello { subscribe: format!("{topic}\n").into(), ..silent },
            // Its answer to the handshake says that it listens to the channel.
            Self::Nchan => {
                Hello { request: websocket::handshake("bench", &format!("/sub/{topic}")), ..silent }
            }
            Self::Nats => {
                let owner = Owner::anonymous();
                let subject =
                    if all { subjects::all_of_owner(&owner) } else { subjects::all_of_job(&owner, job) };
                let connect = r#"{"verbose":false,"pedantic":false,"headers":false,"protocol":1}"#;
                let text = format!("CONNECT {connect}\r\nSUB {subject} 1\r\nPING\r\n");
                let mut subscribe = Vec::new();
                websocket::client_frame(BINARY, text.as_bytes(), &mut subscribe);
                Hello { request: websocket::handshake("bench", "/"), subscribe, ..silent }
            }
            _ => {
                let mut message =
                    json!({"type": "subscribe", "job_ids": if all { Value::Null } else { json!([job]) }});
                if batched {
                    message["batch"] = true.into();
                }
                let mut subscribe = Vec::new();
                websocket::client_frame(TEXT, message.to_string().as_bytes(), &mut subscribe);
                let request = websocket::handshake("127.0.0.1", "/ws/progress");
                let snapshots = if !self.is_ours() {
                    0
                } else if all {
                    active
                } else {
                    1
                };
                Hello { request, subscribe, snapshots, ..silent }
            }
        }
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
    Ok(Started { server, address, feed: Feed::Nats(setup.nats_port), _folder: None })
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
    Ok(Started { server, address: ([127, 0, 0, 1], port).into(), feed, _folder: None })
}
