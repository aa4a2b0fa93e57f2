//! Processes that end with the test that started them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;

use crate::wait::within;

/// Lines of a process's output that are kept to explain a failure.
const KEPT_LINES: usize = 400;

/// A binary of the workspace, beside the test that runs.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("a test is a file");
    // Binaries lie in target/<profile>, tests one folder further down.
    let path = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.exists());
    path.unwrap_or_else(|| panic!("{name} is not built; `cargo build --workspace --bins` does it"))
}

/// As [`binary`], started so that [`Process::limit_files`] makes its writes fail instead of ending it.
pub fn limitable(name: &str) -> Command {
    let mut command = Command::new("sh");
    // The kernel's signal is ignored by what takes the shell's place, too.
    command.args(["-c", r#"trap "" XFSZ; exec "$0""#]).arg(binary(name));
    command
}

/// A running process. Killed when dropped; its output is shown if the test has failed by then.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<VecDeque<String>>>,
    seen: watch::Receiver<u64>,
}

impl Process {
    /// Starts a program and reads what it prints.
    pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("{name} cannot be started"))?;
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let (report, seen) = watch::channel(0);
        let report = Arc::new(report);
        let out = child.stdout.take().context("stdout is piped")?;
        let err = child.stderr.take().context("stderr is piped")?;
        read(out, lines.clone(), report.clone());
        read(err, lines.clone(), report);
        Ok(Self { name: name.to_owned(), child, lines, seen })
    }

    /// The first line that `find` makes something of; waits for it. Errors if the process ends first.
    pub async fn line<T>(&mut self, find: impl Fn(&str) -> Option<T>) -> anyhow::Result<T> {
        let name = self.name.clone();
        let looking = async {
            loop {
                let found = self.lock().iter().find_map(|line| find(line));
                if let Some(found) = found {
                    return Ok(found);
                }
                tokio::select! {
                    changed = self.seen.changed() => {
                        if changed.is_err() {
                            bail!("{name} ended: {}", self.output());
                        }
                    }
                    status = self.child.wait() => bail!("{name} ended with {}: {}", status?, self.output()),
                }
            }
        };
        within(&format!("{name} says something"), looking).await
    }

    /// The address that a service logs once it listens; logs must be JSON.
    pub async fn address(&mut self) -> anyhow::Result<String> {
        self.line(|line| {
            let line: Value = serde_json::from_str(line).ok()?;
            line["fields"]["address"].as_str().map(str::to_owned)
        })
        .await
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id().expect("the process has not been waited for")
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("our own child can be signalled");
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.id()).expect("ids are small")).expect("ids are not 0")
    }

    /// Lets no file of a [`limitable`] process grow beyond so many bytes, as if its disk were full; `None` lifts that.
    ///
    /// This holds for root too, needs no mount, and says EFBIG where a full disk says ENOSPC.
    pub fn limit_files(&self, bytes: Option<u64>) {
        // A child's own limits are those of its parent.
        let own = getrlimit(Resource::Fsize);
        let limit = Rlimit { current: bytes.or(own.current), maximum: own.maximum };
        prlimit(Some(self.pid()), Resource::Fsize, limit).expect("our own child can be limited");
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> ExitStatus {
        let name = self.name.clone();
        within(&format!("{name} ends"), self.child.wait()).await.expect("our own child can be waited for")
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("our own child can be asked").is_none()
    }

    /// What it printed last.
    pub fn output(&self) -> String {
        self.lock().iter().cloned().collect::<Vec<_>>().join("\n")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<String>> {
        self.lines.lock().expect("no code panics while it holds this lock")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- {} ----\n{}", self.name, self.output());
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the reader ends with the pipe that it reads")]
fn read(
    pipe: impl AsyncRead + Unpin + Send + 'static,
    lines: Arc<Mutex<VecDeque<String>>>,
    report: Arc<watch::Sender<u64>>,
) {
    tokio::spawn(async move {
        let mut reader = BufReader::new(pipe).lines();
        while let Ok(Some(line)) = reader.next_line().await {
            let mut lines = lines.lock().expect("no code panics while it holds this lock");
            if lines.len() == KEPT_LINES {
                lines.pop_front();
            }
            lines.push_back(line);
            drop(lines);
            report.send_modify(|seen| *seen += 1);
        }
    });
}
