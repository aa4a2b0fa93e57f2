//! Starting, asking and stopping the real binary.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// Ten times what the slowest step takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// The binary. It looks for a `nats-server` on PATH and in the environment of the workspace.
pub fn stepcast() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stepcast"));
    command
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .env_remove("STEPCAST_DATA_DIR")
        .env_remove("STEPCAST_LISTEN")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// Runs the binary to its end.
pub async fn output(command: &mut Command) -> Output {
    timeout(DEADLINE, command.output()).await.expect("the command ends").expect("the command runs")
}

/// A running `up`.
pub struct Up {
    child: Child,
    /// What it said when it was ready.
    pub ready: Value,
    /// How long that took.
    pub took: Duration,
}

impl Up {
    /// Starts it on a free port, and waits until it is ready.
    pub async fn start(data_dir: &Path, arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", data_dir, arguments).await
    }

    /// Starts it at this address, and waits until it is ready.
    pub async fn start_at(listen: &str, data_dir: &Path, arguments: &[&str]) -> Self {
        let begun = Instant::now();
        let mut child = stepcast()
            .args(["up", "--json", "--listen", listen, "--data-dir"])
            .arg(data_dir)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().expect("it is piped"));
        timeout(DEADLINE, out.read_line(&mut line))
            .await
            .expect("it says something")
            .expect("its output is open");
        if line.is_empty() {
            let mut errors = String::new();
            child.stderr.take().expect("it is piped").read_to_string(&mut errors).await.expect("it is text");
            panic!("it ended instead of being ready: {errors}");
        }
        let ready = serde_json::from_str(&line).expect("the line is JSON");
        Self { child, ready, took: begun.elapsed() }
    }

    /// The one origin.
    pub fn url(&self) -> &str {
        self.ready["url"].as_str().expect("it says where it is")
    }

    /// The NATS server's process.
    pub fn nats_pid(&self) -> i32 {
        self.ready["nats_pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("the server is its own")
    }

    /// The program that its NATS server is.
    pub fn nats_program(&self) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/exe", self.nats_pid())).expect("it runs")
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("it runs").try_into().expect("a process id fits");
        send(pid, signal);
    }

    /// Waits for its end; its code, and what it said on standard error.
    pub async fn ended(mut self) -> (Option<i32>, String) {
        let mut errors = String::new();
        let mut stderr = self.child.stderr.take().expect("it is piped");
        let end = async {
            stderr.read_to_string(&mut errors).await.expect("it is text");
            self.child.wait().await.expect("it is our child")
        };
        let status = timeout(DEADLINE, end).await.expect("it ends");
        (status.code(), errors)
    }

    /// Asks it to stop, and expects it to do so cleanly.
    pub async fn stop(self) {
        self.signal(Signal::TERM);
        let (code, errors) = self.ended().await;
        assert_eq!(code, Some(0), "{errors}");
    }

    /// Runs a command of the client against it.
    pub async fn client(&self, arguments: &[&str]) -> Output {
        output(stepcast().args(arguments).env("STEPCAST_SERVER", self.url())).await
    }

    /// Submits a job, and tells its id.
    pub async fn submit(&self, arguments: &[&str]) -> String {
        let output = self.client(&[&["submit"], arguments].concat()).await;
        assert!(output.status.success(), "{output:?}");
        text(&output.stdout).trim().to_owned()
    }

    /// A job, as the server tells it.
    pub async fn job(&self, id: &str) -> Value {
        let output = self.client(&["get", id, "--json"]).await;
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Waits until a job is in this state.
    pub async fn wait_for(&self, id: &str, status: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let job = self.job(id).await;
            if job["status"] == status {
                return job;
            }
            assert!(Instant::now() < deadline, "not {status}: {job}");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Sends a process a signal.
pub fn send(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).expect("it is a process id"), signal).expect("it can be sent a signal");
}

/// Waits until a process is no `nats-server` any more.
pub async fn nats_is_gone(pid: i32) {
    let deadline = Instant::now() + DEADLINE;
    while std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.starts_with(b"nats-server")) {
        assert!(Instant::now() < deadline, "nats-server {pid} is still there");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What a program said.
pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it is text")
}
