//! NATS as it is deployed: with the configuration of `deploy/nats`, its users and what they may do.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use stepcast_shared::config::NatsConfig;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::client::Http;
use crate::nats::server_binary;
use crate::process::Process;
use crate::wait::{until, until_after};

/// How long a node may take to catch up with the others.
const CAUGHT_UP: Duration = Duration::from_mins(2);
/// Nodes of a cluster.
pub const NODES: usize = 3;
/// The users of `deploy/nats/users.conf`.
pub const USERS: [&str; 5] = ["api", "poller", "gateway", "reader", "operator"];

/// One node, or three that are a cluster, on loopback ports that stay.
pub struct Bus {
    nodes: Vec<Option<Process>>,
    ports: Vec<Ports>,
    folder: TempDir,
}

#[derive(Clone, Copy)]
struct Ports {
    client: u16,
    route: u16,
    health: u16,
}

impl Bus {
    /// Starts one node on `deploy/nats/nats.conf`.
    pub async fn single() -> anyhow::Result<Self> {
        Self::start(1).await
    }

    /// Starts three nodes on `deploy/nats/cluster.conf`.
    pub async fn cluster() -> anyhow::Result<Self> {
        Self::start(NODES).await
    }

    async fn start(nodes: usize) -> anyhow::Result<Self> {
        // All are chosen before any is given back, so that no two are alike.
        let listeners = (0..3 * nodes)
            .map(|_| std::net::TcpListener::bind("127.0.0.1:0"))
            .collect::<std::io::Result<Vec<_>>>()?;
        let ports = listeners
            .chunks(3)
            .map(|three| {
                let port = |index: usize| three[index].local_addr().map(|address| address.port());
                Ok(Ports { client: port(0)?, route: port(1)?, health: port(2)? })
            })
            .collect::<std::io::Result<Vec<_>>>()?;
        drop(listeners);
        let folder = tempfile::tempdir()?;
        let mut bus = Self { nodes: (0..nodes).map(|_| None).collect(), ports, folder };
        for node in 0..nodes {
            bus.start_node(node).await?;
        }
        Ok(bus)
    }

    /// Starts a node, for the first time or again, and waits until it takes connections.
    pub async fn start_node(&mut self, node: usize) -> anyhow::Result<()> {
        let Ports { client, route, health } = self.ports[node];
        let file = if self.nodes.len() == 1 { "nats.conf" } else { "cluster.conf" };
        let mut command = Command::new(server_binary());
        // What the command line says goes before the file: the file itself is that of the deployment.
        command.arg("--config").arg(folder().join(file)).args(["-a", "127.0.0.1"]);
        command.args(["-p", &client.to_string(), "-m", &health.to_string()]);
        command.arg("--log").arg(self.log(node));
        command.env("NATS_NAME", name(node)).env("NATS_STORE", quoted(&self.store(node)));
        for user in USERS {
            let variable = format!("NATS_{}_PASSWORD", user.to_uppercase());
            command.env(variable, quoted(&password(user)));
        }
        if self.nodes.len() > 1 {
            command.args(["--cluster", &format!("nats://127.0.0.1:{route}")]);
            command.env("NATS_CLUSTER_PASSWORD", quoted(&password("node")));
            for (index, ports) in self.ports.iter().enumerate() {
                let url = format!("nats://node:{}@127.0.0.1:{}", password("node"), ports.route);
                command.env(format!("NATS_ROUTE_{index}"), quoted(&url));
            }
        }
        self.nodes[node] = Some(Process::start(&name(node), &mut command)?);
        until("nats-server takes connections", async || TcpStream::connect(("127.0.0.1", client)).await.ok())
            .await;
        Ok(())
    }

    /// Waits until a node says that it is healthy, as compose asks it.
    pub async fn wait_until_healthy(&self, node: usize) {
        let http = Http::to(&format!("127.0.0.1:{}", self.ports[node].health));
        until_after(CAUGHT_UP, "the node is healthy", async || {
            let answer = http.try_send(Method::GET, "/healthz", "".into(), &[]).await.ok()?;
            (answer.status == 200).then_some(())
        })
        .await;
    }

    /// A node's process. Panics if it does not run.
    pub fn node(&mut self, node: usize) -> &mut Process {
        self.nodes[node].as_mut().expect("the node was started")
    }

    /// The addresses of all nodes, as a service is told them.
    pub fn url(&self) -> String {
        let urls = self.ports.iter().map(|ports| format!("nats://127.0.0.1:{}", ports.client));
        urls.collect::<Vec<_>>().join(",")
    }

    /// The first node's address, `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0].client)
    }

    /// How one of the users logs in.
    pub fn login(&self, user: &str) -> NatsConfig {
        NatsConfig {
            nats_user: Some(user.to_owned()),
            nats_password: Some(password(user).into()),
            ..NatsConfig::at(self.url())
        }
    }

    /// What the nodes logged of users that wanted more than they may.
    pub fn violations(&self) -> Vec<String> {
        let logs = (0..self.nodes.len())
            .map(|node| std::fs::read_to_string(self.log(node)).expect("a node writes its log"));
        let lines: Vec<String> =
            logs.flat_map(|log| log.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
        lines.into_iter().filter(|line| line.to_lowercase().contains("violation")).collect()
    }

    fn log(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("{}.log", name(node)))
    }

    fn store(&self, node: usize) -> String {
        self.folder.path().join(name(node)).display().to_string()
    }
}

/// The password of a user, here where nothing is secret.
pub fn password(user: &str) -> String {
    format!("{user}-0123")
}

/// The configuration of the deployment.
fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats")
}

fn name(node: usize) -> String {
    format!("nats-{node}")
}

/// A value as the server reads it from the environment: as text of its configuration.
fn quoted(value: &str) -> String {
    format!("'{value}'")
}
