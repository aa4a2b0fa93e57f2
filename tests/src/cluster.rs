//! Three real `nats-server` processes as one cluster.

use std::path::Path;

use anyhow::Context as _;
use async_nats::Client;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::nats::server_binary;
use crate::process::Process;
use crate::wait::until;

/// Servers of a cluster.
const SERVERS: usize = 3;

/// A cluster on free loopback ports, with JetStream in a folder of its own.
pub struct NatsCluster {
    servers: Vec<Option<Process>>,
    ports: Vec<Ports>,
    folder: TempDir,
}

#[derive(Clone, Copy)]
struct Ports {
    client: u16,
    route: u16,
}

impl NatsCluster {
    /// Starts all three, and waits until each takes connections. Who leads is not decided by then.
    pub async fn start() -> anyhow::Result<Self> {
        let mut cluster = Self::reserve()?;
        for index in 0..SERVERS {
            cluster.start_server(index).await?;
        }
        Ok(cluster)
    }

    /// Chooses the ports of a cluster, and starts nothing yet.
    pub fn reserve() -> anyhow::Result<Self> {
        let listeners = (0..2 * SERVERS)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .collect::<std::io::Result<Vec<_>>>()?;
        // All are chosen before any is given back, so that no two are alike.
        let ports = listeners
            .chunks(2)
            .map(|pair| {
                Ok(Ports { client: pair[0].local_addr()?.port(), route: pair[1].local_addr()?.port() })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        Ok(Self { servers: (0..SERVERS).map(|_| None).collect(), ports, folder: tempfile::tempdir()? })
    }

    /// Starts one server, for the first time or again, and waits until it takes connections.
    pub async fn start_server(&mut self, index: usize) -> anyhow::Result<()> {
        let file = self.folder.path().join(format!("{index}.conf"));
        std::fs::write(&file, self.configuration(index))?;
        let mut command = Command::new(server_binary());
        let process = Process::start(&name(index), command.arg("-c").arg(&file))?;
        self.servers[index] = Some(process);
        let port = self.ports[index].client;
        until("nats-server takes connections", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
        Ok(())
    }

    /// The addresses of all servers, as a service is told them.
    pub fn url(&self) -> String {
        let urls = self.ports.iter().map(|ports| format!("nats://127.0.0.1:{}", ports.client));
        urls.collect::<Vec<_>>().join(",")
    }

    /// A server's process. Panics if it does not run.
    pub fn server(&mut self, index: usize) -> &mut Process {
        self.servers[index].as_mut().expect("the server was started")
    }

    fn configuration(&self, index: usize) -> String {
        let Ports { client, route } = self.ports[index];
        let routes = self.ports.iter().map(|ports| format!("\"nats://127.0.0.1:{}\"", ports.route));
        format!(
            r#"server_name: "{name}"
listen: "127.0.0.1:{client}"
jetstream {{ store_dir: "{store}" }}
cluster {{
  name: "stepcast"
  listen: "127.0.0.1:{route}"
  routes: [{routes}]
  # Clients know all addresses, which may be those of links that can be cut.
  no_advertise: true
}}
"#,
            name = name(index),
            store = store(self.folder.path(), index),
            routes = routes.collect::<Vec<_>>().join(", "),
        )
    }
}

fn name(index: usize) -> String {
    format!("nats-{index}")
}

fn store(folder: &Path, index: usize) -> String {
    folder.join(format!("store-{index}")).display().to_string()
}

/// How many copies a stream has that are up to date, and which server leads it; `None` while nobody does.
pub async fn standing(client: &Client, stream: &str) -> anyhow::Result<Option<(usize, usize)>> {
    let answer = client.request(format!("$JS.API.STREAM.INFO.{stream}"), "".into()).await?;
    let info: Value = serde_json::from_slice(&answer.payload)?;
    let cluster = &info["cluster"];
    let Some(leader) = cluster["leader"].as_str() else { return Ok(None) };
    let leader = leader.strip_prefix("nats-").and_then(|index| index.parse().ok());
    let followers = cluster["replicas"].as_array().map_or(&[][..], Vec::as_slice);
    let current = followers.iter().filter(|replica| replica["current"] == true).count();
    Ok(Some((current + 1, leader.context("servers are called by their index")?)))
}
