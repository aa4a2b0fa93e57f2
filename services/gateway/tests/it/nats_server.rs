//! A `nats-server` of one test, on a port of its own, ended with the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A running server; it can be killed and started again over the same store and port.
pub struct NatsServer {
    folder: TempDir,
    child: Child,
    port: u16,
}

impl NatsServer {
    /// Starts a server and waits for its port.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = spawn(folder.path(), "-1");
        let port = announced_port(folder.path(), child.id()).await;
        Self { folder, child, port }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.folder.path(), &self.port.to_string());
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(folder: &Path, port: &str) -> Child {
    let binary = binary();
    Command::new(&binary)
        .args(["-a", "127.0.0.1", "-p", port, "-js"])
        .arg("-sd")
        .arg(folder.join("store"))
        .arg("--ports_file_dir")
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{} cannot be started: {error}", binary.display()))
}

/// `STEPCAST_NATS_SERVER`, else the one on the path, else the one in the workspace's virtual environment.
fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("STEPCAST_NATS_SERVER") {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    let installed = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.venv/bin/nats-server");
    on_path
        .chain([PathBuf::from(installed)])
        .find(|it| it.is_file())
        .unwrap_or_else(|| panic!("no nats-server on the path or in .venv; name one in STEPCAST_NATS_SERVER"))
}

async fn announced_port(folder: &Path, pid: u32) -> u16 {
    let announced = folder.join(format!("nats-server_{pid}.ports"));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        // The file may be seen before it is written.
        let text = std::fs::read_to_string(&announced).unwrap_or_default();
        if let Ok(ports) = serde_json::from_str::<serde_json::Value>(&text) {
            let url = ports["nats"][0].as_str().expect("the server says where it listens");
            return url.rsplit(':').next().unwrap().parse().unwrap();
        }
        assert!(Instant::now() < deadline, "nats-server did not say its port");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
