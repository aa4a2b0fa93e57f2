//! The door of a deployment: a real nginx with the configuration that compose uses.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::names::Names;
use crate::process::Process;
use crate::wait::until;

/// Starts of nginx until its port counts as taken for good.
const TRIES: u32 = 5;

/// nginx in front of replicas that it finds by name.
pub struct Edge {
    process: Process,
    binary: PathBuf,
    port: u16,
    /// The port of every replica, at addresses of its own.
    replicas: u16,
    names: Names,
    folder: TempDir,
}

impl Edge {
    /// Starts it over replicas that will listen on this port. It knows none of them yet.
    pub async fn start(replicas: u16) -> anyhow::Result<Self> {
        let binary = binary()?;
        let names = Names::start().await?;
        let folder = tempfile::tempdir()?;
        let mut tries = 1;
        loop {
            let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let text = configuration(port, replicas, &names, folder.path())?;
            std::fs::write(folder.path().join("nginx.conf"), text)?;
            match launch(&binary, folder.path(), port).await {
                Ok(process) => return Ok(Self { process, binary, port, replicas, names, folder }),
                Err(_) if tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Where clients reach everything, `host:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Says where the replicas of a service are from now on.
    pub fn find(&self, service: &str, addresses: &[Ipv4Addr]) {
        self.names.set(service, addresses.to_vec());
    }

    /// Where a replica at this address listens, `host:port`.
    pub fn replica(&self, address: Ipv4Addr) -> String {
        format!("{address}:{}", self.replicas)
    }

    /// Stops it as a container is stopped, what is under way being finished or cut off, and starts it again.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.process.signal(Signal::QUIT);
        self.process.end().await;
        self.process = launch(&self.binary, self.folder.path(), self.port).await?;
        Ok(())
    }
}

/// Where nginx is: on the path, where Debian puts it, or where `.ci/install edge` unpacks it.
fn binary() -> anyhow::Result<PathBuf> {
    let unpacked = workspace().join(".venv/edge/usr/sbin/nginx");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nginx"));
    let mut all = on_path.chain(["/usr/sbin/nginx".into(), unpacked]);
    all.find(|file| file.is_file()).context("nginx is not installed; `.ci/install edge` does it")
}

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The deployment's configuration, with other ports, another name server and a folder of its own.
///
/// Errors if the file no longer has one of the places: what is tested is to be what is deployed.
fn configuration(port: u16, replicas: u16, names: &Names, folder: &Path) -> anyhow::Result<String> {
    let mut text = std::fs::read_to_string(workspace().join("deploy/edge/nginx.conf"))?;
    let folder = folder.display();
    for (place, here) in [
        ("listen 8000;", format!("listen 127.0.0.1:{port};")),
        ("resolver 127.0.0.11 ", format!("resolver {} ", names.address())),
        ("set $gateway gateway:8000;", format!("set $gateway gateway:{replicas};")),
        ("set $api api:8000;", format!("set $api api:{replicas};")),
        (" /tmp/", format!(" {folder}/")),
        // In a container this is the first process, whose end is the container's.
        ("worker_processes auto;", "worker_processes 2; daemon off;".to_owned()),
    ] {
        ensure!(text.contains(place), "deploy/edge/nginx.conf has no `{place}`");
        text = text.replace(place, &here);
    }
    Ok(text)
}

async fn launch(binary: &Path, folder: &Path, port: u16) -> anyhow::Result<Process> {
    let mut command = Command::new(binary);
    command.arg("-p").arg(folder).arg("-c").arg(folder.join("nginx.conf")).args(["-e", "stderr"]);
    command.stdin(Stdio::null());
    let mut process = Process::start("nginx", &mut command)?;
    let ended = until("nginx takes connections", async || {
        if !process.is_running() {
            return Some(true);
        }
        TcpStream::connect(("127.0.0.1", port)).await.ok().map(|_| false)
    })
    .await;
    ensure!(!ended, "nginx ended: {}", process.output());
    Ok(process)
}
