//! Stopping a NATS server that an earlier run left behind, and nothing else.
//!
//! A pid file alone proves nothing: the number may be another program's by now. So the process must be a
//! `nats-server` that runs with our own configuration.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;
use tracing::warn;

use crate::nats_config::Files;

/// How long a server may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// Stops the server that the pid file names, if it is ours and still runs.
pub async fn stop(files: &Files) -> anyhow::Result<()> {
    let Some(pid) = found(files) else { return Ok(()) };
    warn!(pid = pid.as_raw_nonzero().get(), "stopping a nats server that an earlier run left behind");
    for signal in [Signal::TERM, Signal::KILL] {
        // It may have ended in this instant; the check below tells.
        let _ = kill_process(pid, signal);
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if !runs(pid, &files.config) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    bail!("a nats-server of an earlier run (process {}) does not end", pid.as_raw_nonzero())
}

/// The process of the server that runs with our own configuration.
pub fn running(files: &Files) -> Option<u32> {
    found(files)?.as_raw_nonzero().get().try_into().ok()
}

fn found(files: &Files) -> Option<Pid> {
    read_pid(&files.pid).filter(|pid| runs(*pid, &files.config))
}

fn read_pid(file: &Path) -> Option<Pid> {
    Pid::from_raw(fs::read_to_string(file).ok()?.trim().parse().ok().filter(|pid| *pid > 1)?)
}

fn runs(pid: Pid, config: &Path) -> bool {
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero()))
        .context("no such process")
        .is_ok_and(|cmdline| is_ours(&cmdline, config))
}

/// Whether a command line is that of a `nats-server` with this configuration. A zombie's is empty.
fn is_ours(cmdline: &[u8], config: &Path) -> bool {
    let mut arguments = cmdline.split(|byte| *byte == 0).map(|argument| String::from_utf8_lossy(argument));
    let program = arguments.next().unwrap_or_default();
    let is_nats = Path::new(&*program).file_name().is_some_and(|name| name == "nats-server");
    is_nats && arguments.any(|argument| Path::new(&*argument) == config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nats_server_with_our_configuration_is_ours() {
        let config = Path::new("/data/nats/nats-server.conf");
        let ours = |cmdline: &str| is_ours(cmdline.as_bytes(), config);
        assert!(ours("/opt/nats-server\0-c\0/data/nats/nats-server.conf\0"));
        assert!(!ours("/opt/nats-server\0-c\0/other/nats-server.conf\0"));
        assert!(!ours("/usr/bin/vi\0/data/nats/nats-server.conf\0"));
        assert!(!ours("/opt/nats-server\0"));
        assert!(!ours(""));
    }

    #[test]
    fn a_pid_file_must_hold_a_process() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, read) in
            [("4711\n", true), ("1", false), ("0", false), ("-5", false), ("x", false), ("", false)]
        {
            fs::write(file.path(), text).unwrap();
            assert_eq!(read_pid(file.path()).is_some(), read, "{text}");
        }
    }

    #[tokio::test]
    async fn another_program_under_the_same_number_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::within(folder.path());
        fs::write(&files.pid, std::process::id().to_string()).unwrap();
        stop(&files).await.unwrap();
    }
}
