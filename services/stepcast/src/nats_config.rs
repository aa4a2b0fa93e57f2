//! The configuration of our NATS server, and the files around it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

/// Where the server's files are.
#[derive(Clone, Debug)]
pub struct Files {
    /// Its configuration; also what a leftover server is known by.
    pub config: PathBuf,
    /// Its log.
    pub log: PathBuf,
    /// Its process id.
    pub pid: PathBuf,
    /// Where it tells its ports.
    pub ports: PathBuf,
    /// Streams and buckets.
    pub store: PathBuf,
}

impl Files {
    /// The files within `folder`.
    pub fn within(folder: &Path) -> Self {
        Self {
            config: folder.join("nats-server.conf"),
            log: folder.join("nats-server.log"),
            pid: folder.join("nats-server.pid"),
            ports: folder.join("ports"),
            store: folder.join("jetstream"),
        }
    }

    /// Writes the configuration, and forgets the ports of earlier servers.
    pub fn write(&self) -> anyhow::Result<()> {
        match fs::remove_dir_all(&self.ports) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{} cannot be emptied", self.ports.display()));
            }
            _ => {}
        }
        fs::create_dir_all(&self.ports)
            .with_context(|| format!("{} cannot be made", self.ports.display()))?;
        fs::write(&self.config, self.text())
            .with_context(|| format!("{} cannot be written", self.config.display()))
    }

    fn text(&self) -> String {
        let Self { log, pid, ports, store, .. } = self;
        // An acknowledged event must outlive a power cut, and there is no second server that has it too.
        format!(
            r#"# Written by Stepcast at each start: changes do not last.
server_name: stepcast
host: "127.0.0.1"
port: -1
ports_file_dir: {ports}
pid_file: {pid}
log_file: {log}
logfile_size_limit: 10485760
logfile_max_num: 3
jetstream {{
  store_dir: {store}
  sync_interval: always
}}
"#,
            ports = quoted(ports),
            pid = quoted(pid),
            log = quoted(log),
            store = quoted(store),
        )
    }

    /// The address at which the server of process `pid` can be reached; `None` until it has told.
    pub fn address(&self, pid: u32) -> Option<String> {
        #[derive(Deserialize)]
        struct Ports {
            nats: Vec<String>,
        }
        let text = fs::read(self.ports.join(format!("nats-server_{pid}.ports"))).ok()?;
        // Half a file does not parse, and is read again.
        serde_json::from_slice::<Ports>(&text).ok()?.nats.into_iter().next()
    }

    /// The end of the log, for an error message.
    pub fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

/// A path as a string of the configuration's own syntax.
fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_listens_here_alone_and_syncs_always() {
        let text = Files::within(Path::new("/data/nats")).text();
        for line in [
            "host: \"127.0.0.1\"",
            "port: -1",
            "ports_file_dir: \"/data/nats/ports\"",
            "  store_dir: \"/data/nats/jetstream\"",
            "  sync_interval: always",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn a_path_cannot_end_its_own_string() {
        assert_eq!(quoted(Path::new(r#"/a "b"\c"#)), r#""/a \"b\"\\c""#);
    }

    #[test]
    fn the_address_is_read_once_it_is_whole_and_of_this_process() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::within(folder.path());
        fs::create_dir_all(folder.path()).unwrap();
        files.write().unwrap();
        let file = files.ports.join("nats-server_7.ports");
        assert_eq!(files.address(7), None);
        fs::write(&file, r#"{"nats":["nats://127"#).unwrap();
        assert_eq!(files.address(7), None);
        fs::write(&file, r#"{"nats":["nats://127.0.0.1:41"],"monitoring":[]}"#).unwrap();
        assert_eq!(files.address(7).as_deref(), Some("nats://127.0.0.1:41"));
        assert_eq!(files.address(8), None);
        files.write().unwrap();
        assert_eq!(files.address(7), None, "a new start forgets old ports");
    }
}
